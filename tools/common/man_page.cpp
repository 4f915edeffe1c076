#include "tools/common/man_page.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

namespace dualpipe {
namespace {

constexpr std::string_view paragraph = ".PP\n";

// Text in which nothing is taken for a request, a dash is the one that is typed, and all is ASCII.
std::string roff(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (text.substr(i).starts_with("…")) {
      result += "...";
      i += std::string_view("…").size() - 1;
    } else if (text.substr(i).starts_with("µ")) {
      result += "\\[u00B5]";
      i += std::string_view("µ").size() - 1;
    } else if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else {
      if ((c == '.' || c == '\'') && (result.empty() || result.back() == '\n')) result += "\\&";
      result += c;
    }
  }
  return result;
}

std::string section(std::string_view request, std::string_view title) {
  std::string upper(title);
  if (request == ".SH") {
    std::ranges::transform(upper, upper.begin(),
                           [](char c) { return static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c); });
  }
  return fmt::format("{} \"{}\"\n", request, roff(upper));
}

std::string entry(const OptionDescription& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.names) names.push_back("\\fB" + roff(name) + "\\fR");
  std::string text = fmt::format(".TP\n{}", fmt::join(names, ", "));
  if (!option.type.empty() && option.names[0].starts_with('-')) text += " \\fI" + roff(option.type) + "\\fR";
  if (!option.default_value.empty()) text += " (" + roff(option.default_value) + ")";
  return text + "\n" + roff(option.help) + "\n";
}

std::string entries(const CommandDescription& command) {
  std::string text, group;
  for (const OptionDescription& argument : command.arguments) text += entry(argument);
  for (const OptionDescription& option : command.options) {
    if (option.group != group && option.group != "Options") text += section(".SS", option.group);
    group = option.group;
    text += entry(option);
  }
  return text;
}

std::string synopsis(const CommandDescription& command) {
  std::string text = "\\fB" + roff(command.name) + "\\fR";
  if (!command.options.empty()) text += " [\\fIOPTIONS\\fR]";
  for (const OptionDescription& argument : command.arguments) {
    const std::string name = "\\fI" + roff(argument.names[0]) + "\\fR";
    text += argument.is_required ? " " + name : fmt::format(" [{}]", name);
  }
  return text + "\n";
}

// Paragraphs, and commands line by line.
std::string footer(std::string_view text) {
  std::string result;
  bool in_example = false, at_begin = true;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    const bool is_command = line.starts_with("  ");
    if (is_command != in_example) result += is_command ? ".PP\n.EX\n" : ".EE\n";
    if (!is_command && (at_begin || in_example) && !line.empty()) result += paragraph;
    in_example = is_command;
    at_begin = line.empty();
    if (!line.empty()) result += roff(line) + "\n";
  }
  return in_example ? result + ".EE\n" : result;
}

}  // namespace

std::string man_page(const CommandDescription& tool, std::string_view version) {
  std::string text = fmt::format(".TH \"{}\" 1 \"\" \"dualpipe {}\" \"User Commands\"\n", roff(tool.name), version);
  std::string title = tool.title;
  if (title.ends_with('.')) title.pop_back();
  text += section(".SH", "Name") + roff(tool.name) + " \\- " + roff(title) + "\n";
  text += section(".SH", "Synopsis");
  if (tool.subcommands.empty()) text += synopsis(tool);
  for (const CommandDescription& each : tool.subcommands) {
    text += (&each == tool.subcommands.data() ? "" : ".br\n") + synopsis(each);
  }
  text += section(".SH", "Options") + entries(tool);
  for (const CommandDescription& each : tool.subcommands) {
    text += section(".SH", each.name) + roff(each.title) + ".\n" + entries(each) + footer(each.footer);
  }
  std::string notes = footer(tool.footer);
  if (notes.starts_with(paragraph)) notes.erase(0, paragraph.size());  // a section begins with one
  return text + section(".SH", "Notes") + notes;
}

}  // namespace dualpipe
