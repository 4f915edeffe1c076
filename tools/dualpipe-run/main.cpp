// dualpipe-run: parses the command line, calls the library, prints.
//
// Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.
#include "options.h"
#include "session.h"
#include "tools/common/command_line.h"
#include "tools/common/keep_freed_memory.h"

int main(int argc, char** argv) {
  dualpipe::keep_freed_memory();
  CLI::App app{
      "Trains a model on a pipeline of threads or processes, by any schedule, and compares with the simulator.",
      "dualpipe-run"};
  app.set_version_flag("--version", DUALPIPE_VERSION);
  app.footer(
      "Examples:\n"
      "  dualpipe-run dualpipe --ranks 4 --microbatches 16 --model gpt --check\n"
      "  dualpipe-run zb1p --ranks 2 --microbatches 8 --compare --trace out.json\n"
      "  dualpipe-run 1f1b --ranks 2 --microbatches 8 --calibrate costs.json\n"
      "  dualpipe-run dualpipev --ranks 4 --microbatches 8 --model timed --forward 5ms --backward 10ms "
      "--compare\n"
      "  mpirun -n 4 dualpipe-run dualpipe --ranks 4 --microbatches 16\n"
      "\n"
      "Options with [names] are for these models, or devices, alone.\n"
      "\n"
      "Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.");
  dualpipe::RunOptions options;
  options.add_to(app);
  dualpipe::Session session;
  const auto run = [&] {
    options.check_usage(app);
    session.run(options);
  };
  return session.close(dualpipe::run_command_line(app, argc, argv, run));
}
