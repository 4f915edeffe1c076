#include "tools/common/command_line.h"

#include <csignal>
#include <exception>
#include <iostream>
#include <new>
#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/report/printable.h"

namespace dualpipe {
namespace {

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

int report(std::string_view message) {
  while (message.ends_with('\n')) message.remove_suffix(1);
  std::cerr << "error: " << printable_lines(message) << '\n';
  return exit_failed;
}

// A shell variable that is not set makes an empty value; left to itself it would count as an option not given. (CLI11
// hands no empty value to the check of an option that may go without one, and takes --json= for --json.)
void refuse_empty_values(std::span<const char* const> arguments) {
  std::string_view before;
  for (const std::string_view argument : arguments) {
    const bool is_option = argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    const bool is_value = argument.empty() && before.starts_with('-') && before.find('=') == before.npos;
    const std::string_view option = is_option ? argument.substr(0, argument.size() - 1) : before;
    if (is_option || is_value) throw CLI::ValidationError(std::string(option), "the value is empty");
    before = argument;
  }
}

void refuse_empty_values(CLI::App& app) {
  const auto complaint = [](const std::string& value) {
    return std::string(value.empty() ? "the value is empty" : "");
  };
  for (CLI::Option* option : app.get_options()) option->check(complaint);
  for (CLI::App* subcommand : app.get_subcommands({})) refuse_empty_values(*subcommand);
}

}  // namespace

int run_command_line(CLI::App& app, int argc, const char* const* argv, const std::function<void()>& run) {
  refuse_empty_values(app);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow any more makes its write fail, with a message
  try {
    refuse_empty_values(std::span(argv, static_cast<std::size_t>(argc)));
    app.parse(argc, argv);
    run();
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // help, version
    std::cerr << "error: " << printable_lines(error.what()) << "\nRun with --help for more.\n";
    return exit_usage;
  } catch (const Reported&) {
    return exit_failed;
  } catch (const std::bad_alloc&) {
    return report("out of memory: the schedule is too large for this machine; use fewer micro-batches or ranks");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}

}  // namespace dualpipe
