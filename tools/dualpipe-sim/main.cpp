// dualpipe-sim: parses the command line, calls the library, prints.
//
// Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.
#include "commands.h"
#include "tools/common/command_line.h"

int main(int argc, char** argv) {
  CLI::App app{"Simulates pipeline-parallel schedules: bubbles, memory, deadlocks, traces.", "dualpipe-sim"};
  app.set_version_flag("--version", DUALPIPE_VERSION);
  app.require_subcommand(0, 1);
  app.footer(
      "Examples:\n"
      "  dualpipe-sim table --ranks 8 --microbatches 20\n"
      "  dualpipe-sim simulate dualpipe --ranks 8 --microbatches 20 --overlapped 2.5ms --trace out.json\n"
      "  dualpipe-sim help simulate\n"
      "\n"
      "Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.");
  dualpipe::add_table(app);
  dualpipe::add_simulate(app);
  dualpipe::add_estimate(app);
  dualpipe::add_sweep(app);
  dualpipe::add_merge(app);
  dualpipe::add_report(app);
  dualpipe::add_explain(app);
  dualpipe::add_search(app);
  dualpipe::add_partition(app);
  dualpipe::add_calibrate(app);
  dualpipe::add_schedules(app);
  dualpipe::add_validate(app);
  dualpipe::add_convert(app);
  dualpipe::add_compare(app);
  dualpipe::add_help(app);
  return dualpipe::run_command_line(app, argc, argv, [&] {
    // CLI11's own check would come before the one that names an unknown subcommand.
    if (app.get_subcommands().empty()) throw CLI::RequiredError::Subcommand(1);
  });
}
