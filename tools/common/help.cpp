#include "tools/common/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "dualpipe/sim/report/text_table.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

constexpr int margin = 2;  // before what is indented

int columns(std::string_view text) { return static_cast<int>(display_width(text)); }

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (end > begin) words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

std::string heading(std::string_view text, int width) { return "\n" + wrapped(text, width) + ":\n"; }

// "-f, --forward TIME"
std::string names_and_value(const OptionDescription& option, bool is_argument) {
  std::string text = fmt::format("{}", fmt::join(option.names, ", "));
  if (is_argument) return text;
  if (!option.type.empty()) text += " " + option.type;
  if (!option.default_value.empty()) text += "=" + option.default_value;
  return text;
}

// What it is called, and beside it, or below where that is long, what it does.
std::string entry(std::string_view name, std::string_view help, int width) {
  const int column = std::min(26, width / 3);
  std::string text = std::string(margin, ' ');
  text += name;
  if (columns(text) + 2 > column) {
    text += "\n";
    text.append(static_cast<std::size_t>(column), ' ');
  } else {
    text.append(static_cast<std::size_t>(column - columns(text)), ' ');
  }
  return text + wrapped(help, width, column) + "\n";
}

std::string entry(const OptionDescription& option, bool is_argument, int width) {
  const std::string help = option.is_required ? option.help + " (required)" : option.help;
  return entry(names_and_value(option, is_argument), help, width);
}

std::string usage(const CommandDescription& command, int width) {
  std::string text = "Usage: " + command.name;
  if (!command.options.empty()) text += " [OPTIONS]";
  for (const OptionDescription& argument : command.arguments) {
    text += argument.is_required ? " " + argument.names[0] : fmt::format(" [{}]", argument.names[0]);
  }
  if (!command.subcommands.empty()) text += " SUBCOMMAND ...";
  return wrapped(text, width, margin) + "\n";
}

std::string footer(std::string_view text, int width) {
  std::string result;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    result += line.starts_with("  ") ? wrapped_command(line, width) : wrapped(line, width);
    result += "\n";
    begin = end + 1;
  }
  return result;
}

}  // namespace

std::string wrapped(std::string_view paragraph, int width, int indent) {
  std::string text;
  int column = indent;
  for (const std::string_view word : words_of(paragraph)) {
    const int size = columns(word);
    if (column > indent && column + 1 + size > width) {
      text += "\n";
      text.append(static_cast<std::size_t>(indent), ' ');
      column = indent;
    } else if (column > indent) {
      text += " ";
      ++column;
    }
    text += word;
    column += size;
  }
  return text;
}

std::string wrapped_command(std::string_view command, int width) {
  if (columns(command) <= width) return std::string(command);
  // Words that stay together: an option and its values.
  std::vector<std::string> pieces;
  for (const std::string_view word : words_of(command)) {
    const bool is_value = !pieces.empty() && pieces.back().starts_with('-') &&
                          (word == "-" || !word.starts_with('-')) && pieces.back().find(' ') == std::string::npos;
    if (is_value) {
      pieces.back() += fmt::format(" {}", word);
    } else {
      pieces.emplace_back(word);
    }
  }
  constexpr int further = 6;  // the indent of lines that go on
  std::string text(margin, ' ');
  int column = margin;
  bool at_begin = true;
  for (const std::string& piece : pieces) {
    if (!at_begin && column + 1 + columns(piece) + 2 > width) {
      text += " \\\n" + std::string(further, ' ');
      column = further;
      at_begin = true;
    }
    if (!at_begin) {
      text += " ";
      ++column;
    }
    text += piece;
    column += columns(piece);
    at_begin = false;
  }
  return text;
}

std::string help_text(const CommandDescription& command, int width) {
  std::string text = wrapped(command.title, width) + "\n\n" + usage(command, width);
  if (!command.arguments.empty()) text += heading("Arguments", width);
  for (const OptionDescription& argument : command.arguments) text += entry(argument, true, width);
  std::string group;
  for (const OptionDescription& option : command.options) {
    if (option.group != group) text += heading(option.group, width);
    group = option.group;
    text += entry(option, false, width);
  }
  if (!command.subcommands.empty()) text += heading("Subcommands", width);
  for (const CommandDescription& each : command.subcommands) text += entry(short_name(each), each.title, width);
  if (!command.footer.empty()) text += "\n" + footer(command.footer, width);
  return text;
}

int help_width() {
  constexpr int most = 80;
  constexpr int least = 40;
  return std::clamp(terminal_width(most), least, most);
}

}  // namespace dualpipe
