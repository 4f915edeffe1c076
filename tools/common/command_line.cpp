#include "tools/common/command_line.h"

#include <fmt/format.h>

#include <csignal>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/report/printable.h"
#include "tools/common/arguments.h"
#include "tools/common/completion.h"
#include "tools/common/description.h"
#include "tools/common/help.h"
#include "tools/common/man_page.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

int report(std::string_view message, int status = exit_failed) {
  while (message.ends_with('\n')) message.remove_suffix(1);
  std::cerr << "error: " << in_locale(printable_lines(message)) << '\n';
  return status;
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

// What prints instead of running, whatever else is missing on the command line.
void add_printers(CLI::App& app) {
  const auto print_instead = [](const std::string& text) {
    write_output("-", [&](std::ostream& out) { out << text; });
    throw CLI::Success();
  };
  const auto shell = std::make_shared<std::string>();
  add_choice(app, "--completion", *shell, {"bash", "zsh", "fish"},
             "Print a script by which this shell completes the command line")
      ->each([&app, shell, print_instead](const std::string& chosen) {
        print_instead(completion_script(describe(app), chosen));
      });
  app.add_flag_callback("--man", [&app, print_instead] { print_instead(man_page(describe(app), app.version())); })
      ->group("");  // for the build, which installs it
}

void set_formatter(CLI::App& app) {
  app.formatter_fn([](const CLI::App* each, const std::string&, CLI::AppFormatMode) {
    return help_text(describe(*each), help_width());
  });
  for (CLI::App* subcommand : app.get_subcommands({})) set_formatter(*subcommand);
}

// What is missing, which CLI11 calls by its other name where it has one with dashes.
std::string named_as_argument(const CLI::App& app, const std::string& what) {
  for (const CLI::Option* option : app.get_options([](const CLI::Option* each) { return each->get_positional(); })) {
    const std::string name = option->get_name();
    if (what.starts_with(name + " ")) return option->get_name(true) + what.substr(name.size());
  }
  return what;
}

void parse(CLI::App& app, std::span<const char* const> arguments) {
  refuse_empty_values(arguments);
  std::vector<std::string> settled = settled_arguments(app, arguments);
  std::vector<std::string> reversed(settled.rbegin(), settled.rend());  // as CLI11 wants them
  app.parse(std::move(reversed));
}

}  // namespace

int run_command_line(CLI::App& app, int argc, const char* const* argv, const std::function<void()>& run) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow any more makes its write fail, with a message
  try {
    add_printers(app);
    refuse_empty_values(app);
    set_formatter(app);
    try {
      parse(app, std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
      run();
    } catch (const CLI::CallForHelp&) {
      print(app.help());
    } catch (const CLI::CallForVersion& version) {
      print(std::string(version.what()) + "\n");
    } catch (const CLI::Success&) {
    }
    return 0;
  } catch (const CLI::RequiredError& error) {
    return report(fmt::format("{}\nRun with --help for more.", named_as_argument(app, error.what())), exit_usage);
  } catch (const CLI::ParseError& error) {
    return report(error.what(), exit_usage);
  } catch (const UsageError& error) {
    return report(error.what(), exit_usage);
  } catch (const Reported&) {
    return exit_failed;
  } catch (const std::bad_alloc&) {
    return report("out of memory: the schedule is too large for this machine; use fewer micro-batches or ranks");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}

}  // namespace dualpipe
