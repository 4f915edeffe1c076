#include "tools/common/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "dualpipe/sim/schedule/nearest.h"
#include "tools/common/description.h"

namespace dualpipe {
namespace {

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option :
       app.get_options([](const CLI::Option* each) { return !each->get_group().empty(); })) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

[[noreturn]] void refuse_option(const CLI::App& app, const std::string& name) {
  const std::string meant = did_you_mean(name, option_names(app));
  const CLI::App* root = &app;
  while (root->get_parent() != nullptr) root = root->get_parent();
  std::vector<std::string> owners;
  for (const CLI::App* each : root->get_subcommands({})) {
    if (each->get_option_no_throw(name) != nullptr) owners.push_back(each->get_name());
  }
  if (!owners.empty() && &app == root) {
    throw CLI::ValidationError(name, fmt::format("it stands behind the subcommand: {}", fmt::join(owners, ", ")));
  }
  if (meant.empty() && !owners.empty()) {
    throw CLI::ValidationError(
        name, fmt::format("{} has no such option; it is one of: {}", app.get_name(), fmt::join(owners, ", ")));
  }
  throw CLI::ValidationError(
      name, fmt::format("there is no such option{}",
                        meant.empty() ? fmt::format("; {} --help lists them", describe(app).name) : meant));
}

[[noreturn]] void refuse_subcommand(const CLI::App& app, const std::string& name) {
  std::vector<std::string> names;
  for (const CLI::App* each : app.get_subcommands({})) names.push_back(each->get_name());
  const std::string meant = did_you_mean(name, names);
  throw CLI::ValidationError(
      name, fmt::format("there is no such subcommand{}{}{}", meant, meant.empty() ? "; there are " : "",
                        meant.empty() ? fmt::format("{}", fmt::join(names, ", ")) : ""));
}

// Reads a command line by CLI11's rules, as far as to know which argument is what.
class Reader {
 public:
  explicit Reader(CLI::App& app) : app_(&app) {}

  std::vector<std::string> read(std::span<const char* const> arguments) {
    for (std::size_t i = 0; i < arguments.size(); ++i) read_one(arguments, i);
    settle();
    return std::move(read_);
  }

 private:
  // An argument behind an option that may go without.
  struct Candidate {
    std::string option;
    std::string value_without;  // that the option has then
    std::size_t at = 0;         // of the option in read_; the argument is the next one
    bool is_schedule = false;
  };

  void read_one(std::span<const char* const> arguments, std::size_t& i) {
    const std::string argument = arguments[i];
    read_.push_back(argument);
    if (only_arguments_ || argument.size() < 2 || argument[0] != '-') return read_argument(argument);
    if (argument == "--") {
      only_arguments_ = true;
    } else if (argument[1] == '-') {
      const std::size_t assigned = argument.find('=');
      const std::string name = argument.substr(0, assigned);
      const CLI::Option* option = app_->get_option_no_throw(name);
      if (option == nullptr) refuse_option(*app_, name);
      read_values(*option, name, arguments, i, assigned == std::string::npos ? 0 : 1);
    } else {
      const std::string name = argument.substr(0, 2);
      const CLI::Option* option = app_->get_option_no_throw(name);
      if (option == nullptr) refuse_option(*app_, name);
      read_values(*option, name, arguments, i, argument.size() > 2 ? 1 : 0);
    }
  }

  void read_argument(const std::string& argument) {
    CLI::App* subcommand = only_arguments_ ? nullptr : find_subcommand(*app_, argument);
    if (subcommand != nullptr) {
      app_ = subcommand;
    } else if (app_->get_parent() == nullptr && !app_->get_subcommands({}).empty()) {
      refuse_subcommand(*app_, argument);
    } else {
      const auto taken = arguments_taken();
      if (arguments_ == taken) {
        throw CLI::ValidationError(argument, fmt::format("it is one argument too many; {} takes {}", app_->get_name(),
                                                         taken == 0 ? "none" : std::to_string(taken)));
      }
      ++arguments_;
    }
  }

  // All that a command may have; one that takes a list has no end.
  [[nodiscard]] std::size_t arguments_taken() const {
    std::size_t taken = 0;
    for (const CLI::Option* option :
         app_->get_options([](const CLI::Option* each) { return each->get_positional(); })) {
      taken += static_cast<std::size_t>(option->get_items_expected_max());
    }
    return taken;
  }

  // `given`: how many values the option has already, behind '=' or its letter.
  void read_values(const CLI::Option& option, const std::string& name, std::span<const char* const> arguments,
                   std::size_t& i, int given) {
    if (option.get_positional()) ++arguments_;  // its other name
    const int least = option.get_items_expected_min();
    const int most = std::min(option.get_items_expected_max(), std::max(least, 1));
    for (; given < most && i + 1 < arguments.size(); ++given) {
      const std::string_view next = arguments[i + 1];
      const bool is_option = next.size() > 1 && next[0] == '-';
      if (given >= std::min(least, 1) && is_option) return;
      if (least == 0) candidates_.push_back({name, option.get_default_str(), read_.size() - 1});
      read_.emplace_back(next);
      ++i;
    }
  }

  // Leaves no argument of which CLI11 would have to find out.
  void settle() {
    if (const CLI::Option* missing = missing_argument()) find_schedule(*missing);
    for (auto each = candidates_.rbegin(); each != candidates_.rend(); ++each) {
      const Candidate& candidate = *each;
      read_[candidate.at] += "=" + (candidate.is_schedule ? candidate.value_without : read_[candidate.at + 1]);
      if (!candidate.is_schedule) read_.erase(read_.begin() + static_cast<std::ptrdiff_t>(candidate.at) + 1);
    }
  }

  // What must be given, and stands nowhere by itself.
  [[nodiscard]] const CLI::Option* missing_argument() const {
    const auto required =
        app_->get_options([](const CLI::Option* option) { return option->get_positional() && option->get_required(); });
    return required.size() > arguments_ ? required[arguments_] : nullptr;
  }

  void find_schedule(const CLI::Option& missing) {
    const std::vector<std::string> names = describe(missing).choices;
    std::vector<Candidate*> possible;
    for (Candidate& candidate : candidates_) {
      const std::string& argument = read_[candidate.at + 1];
      candidate.is_schedule = std::ranges::find(names, argument) != names.end();
      if (candidate.is_schedule) return;
      if (argument != candidate.value_without) possible.push_back(&candidate);
    }
    if (possible.size() == 1) possible[0]->is_schedule = true;
    if (possible.size() < 2) return;
    const std::string& one = read_[possible[0]->at + 1];
    throw CLI::ValidationError(missing.get_name(true),
                               fmt::format("it may be {} or {}; name it first, or write {}={}", one,
                                           read_[possible[1]->at + 1], possible[0]->option, one));
  }

  CLI::App* app_;
  std::vector<std::string> read_;
  std::vector<Candidate> candidates_;
  std::size_t arguments_ = 0;  // without dashes, that are surely no values
  bool only_arguments_ = false;
};

}  // namespace

std::vector<std::string> settled_arguments(CLI::App& app, std::span<const char* const> arguments) {
  return Reader(app).read(arguments);
}

}  // namespace dualpipe
