#include "tools/common/description.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string_view>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/options/value.h"

namespace dualpipe {
namespace {

void describe_values(OptionDescription& option, const std::string& type) {
  if (type.starts_with('{')) option.choices = split_list(std::string_view(type).substr(1, type.size() - 2));
  if (type.find("NAME") != std::string::npos) {
    for (const Family& family : catalog()) option.choices.emplace_back(family.name);
  }
  option.is_list = type == "NAMES";
  option.takes_files = type.find("FILE") != std::string::npos;
}

// " (with --trace)"; in an order of their own, as CLI11 has them by address.
std::string among(std::string_view how, const std::set<CLI::Option*>& options) {
  std::vector<std::string> names;
  for (const CLI::Option* each : options) names.push_back(each->get_name());
  std::ranges::sort(names);
  return names.empty() ? "" : fmt::format(" ({} {})", how, fmt::join(names, ", "));
}

bool is_hidden(const CLI::Option& option) { return option.get_group().empty(); }

}  // namespace

OptionDescription describe(const CLI::Option& option) {
  OptionDescription description;
  description.help =
      option.get_description() + among("with", option.get_needs()) + among("not with", option.get_excludes());
  description.group = option.get_group();
  description.is_required = option.get_required();
  for (const std::string& name : option.get_snames()) description.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) description.names.push_back("--" + name);
  const int most = option.get_items_expected_max();
  if (most == 0) return description;
  const std::string type = option.get_type_name();
  describe_values(description, type);
  description.is_optional = option.get_items_expected_min() == 0;
  description.type = most == 2 ? fmt::format("{0} {0}", type) : type;
  if (!description.is_optional) description.default_value = option.get_default_str();
  return description;
}

CommandDescription describe(const CLI::App& app) {
  CommandDescription command;
  command.name = app.get_name();
  for (const CLI::App* parent = app.get_parent(); parent != nullptr; parent = parent->get_parent()) {
    command.name = parent->get_name() + " " + command.name;
  }
  command.title = app.get_description();
  command.footer = app.get_footer();
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_positional() || is_hidden(*option)) continue;
    command.arguments.push_back(describe(*option));
    command.arguments.back().names = {option->get_name(true)};
  }
  for (const std::string& group : app.get_groups()) {
    for (const CLI::Option* option : app.get_options()) {
      if (!option->nonpositional() || is_hidden(*option) || option->get_group() != group) continue;
      command.options.push_back(describe(*option));
      if (!option->get_positional()) continue;
      command.options.back().help = "The same as " + option->get_name(true);
      command.options.back().is_required = false;
    }
  }
  for (const CLI::App* subcommand : app.get_subcommands({})) command.subcommands.push_back(describe(*subcommand));
  return command;
}

CLI::App* find_subcommand(CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](const CLI::App* each) { return each->get_name() == name; });
  return found.empty() ? nullptr : found[0];
}

std::string_view short_name(const CommandDescription& command) {
  return std::string_view(command.name).substr(command.name.rfind(' ') + 1);
}

}  // namespace dualpipe
