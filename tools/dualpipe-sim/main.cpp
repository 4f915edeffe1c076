// dualpipe-sim: parses the command line, calls the library, prints.
//
// Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.
#include <fmt/core.h>

#include <exception>
#include <iostream>
#include <new>

#include "commands.h"

namespace {

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

int report(std::string_view message) {
  while (message.ends_with('\n')) message.remove_suffix(1);
  std::cerr << "error: " << message << '\n';
  return exit_failed;
}

// A shell variable that is not set makes an empty value; left to itself it would count as an option not given.
void refuse_empty_values(CLI::App& app) {
  const auto complaint = [](const std::string& value) {
    return std::string(value.empty() ? "the value is empty" : "");
  };
  for (CLI::App* subcommand : app.get_subcommands({})) {
    for (CLI::Option* option : subcommand->get_options()) option->check(complaint);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Simulates pipeline-parallel schedules: bubbles, memory, deadlocks, traces.", "dualpipe-sim"};
  app.set_version_flag("--version", DUALPIPE_VERSION);
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(34);
  app.footer(
      "Examples:\n"
      "  dualpipe-sim table --ranks 8 --microbatches 20\n"
      "  dualpipe-sim simulate dualpipe --ranks 8 --microbatches 20 --overlapped 2.5ms --trace out.json\n"
      "  dualpipe-sim SUBCOMMAND --help\n"
      "\n"
      "Exit status: 0 done, 1 bad input or failed run, 2 wrong usage.");
  dualpipe::add_table(app);
  dualpipe::add_simulate(app);
  dualpipe::add_schedules(app);
  dualpipe::add_validate(app);
  dualpipe::add_convert(app);
  refuse_empty_values(app);

  try {
    app.parse(argc, argv);
    // CLI11's own check would come before the one that names an unknown subcommand.
    if (app.get_subcommands().empty()) throw CLI::RequiredError::Subcommand(1);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // help, version
    std::cerr << "error: " << error.what() << "\nRun with --help for more.\n";
    return exit_usage;
  } catch (const std::bad_alloc&) {
    return report("out of memory: the schedule is too large for this machine; use fewer micro-batches or ranks");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}
