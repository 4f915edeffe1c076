#include "tools/common/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <vector>

namespace dualpipe {
namespace {

std::string function_of(const CommandDescription& tool) {
  std::string name = "_" + tool.name;
  std::ranges::replace(name, '-', '_');
  return name;
}

std::vector<std::string> names_of_subcommands(const CommandDescription& tool) {
  std::vector<std::string> names;
  for (const CommandDescription& each : tool.subcommands) names.emplace_back(short_name(each));
  return names;
}

std::vector<std::string> names_of_options(const CommandDescription& command) {
  std::vector<std::string> names;
  for (const OptionDescription& option : command.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  return names;
}

// The first clause of a help: menus have a line for each.
std::string brief(std::string_view help) {
  std::size_t end = help.size();
  for (const std::string_view stop : {". ", "; ", ": ", " ("}) {
    const std::size_t found = help.find(stop);
    if (found != 0) end = std::min(end, found);
  }
  return std::string(help.substr(0, end));
}

// In single quotes, for a shell.
std::string shell_quoted(std::string_view text, std::string_view quote_within = "'\\''") {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'') {
      result += quote_within;
    } else {
      result += c;
    }
  }
  return result + "'";
}

std::string quoted_words(const std::vector<std::string>& words) {
  return shell_quoted(fmt::format("{}", fmt::join(words, " ")));
}

// Bash

// What `before`, the option before the word to complete, asks for; in a `case` over "command,option".
std::string bash_case(const CommandDescription& command, const OptionDescription& option, std::string_view prefix) {
  if (option.type.empty()) return "";
  std::vector<std::string> patterns;
  for (const std::string& name : option.names) patterns.push_back(fmt::format("{},{}", prefix, name));
  std::vector<std::string> words = option.choices;
  if (option.is_optional) {  // what follows may be the next option
    const std::vector<std::string> next = names_of_options(command);
    words.insert(words.end(), next.begin(), next.end());
  }
  std::string body;
  if (!words.empty()) body += " words=" + quoted_words(words);
  if (option.takes_files) body += " files=yes";
  if (option.is_list) body += " list=yes";
  return fmt::format("    {}) value=yes{} ;;\n", fmt::join(patterns, " | "), body);
}

std::string bash_words(const CommandDescription& command, std::string_view pattern) {
  std::vector<std::string> words = names_of_subcommands(command);
  std::string files;
  for (const OptionDescription& argument : command.arguments) {
    words.insert(words.end(), argument.choices.begin(), argument.choices.end());
    if (argument.takes_files) files = " files=yes";
  }
  return fmt::format(
      "      {},-*) words={} ;;\n"
      "      {},*) words={}{} ;;\n",
      pattern, quoted_words(names_of_options(command)), pattern, quoted_words(words), files);
}

std::string bash(const CommandDescription& tool) {
  std::string values, words = bash_words(tool, "");
  for (const OptionDescription& option : tool.options) values += bash_case(tool, option, "");
  for (const CommandDescription& each : tool.subcommands) {
    for (const OptionDescription& option : each.options) values += bash_case(each, option, short_name(each));
    words += bash_words(each, short_name(each));
  }
  std::string find_command;
  if (!tool.subcommands.empty()) {
    find_command = fmt::format(
        "  for word in \"${{COMP_WORDS[@]:1:COMP_CWORD - 1}}\"; do\n"
        "    case $word in\n"
        "      {}) command=$word; break ;;\n"
        "    esac\n"
        "  done\n",
        fmt::join(names_of_subcommands(tool), " | "));
  }
  return fmt::format(
      R"(# Bash completion for {0}.
{1}() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local command= word= value= words= files= list=
  # Readline makes three words of --option=value.
  if [[ $current == = ]]; then
    current=
  elif [[ $before == = ]]; then
    before=${{COMP_WORDS[COMP_CWORD - 2]}}
  fi
{2}  case $command,$before in
{3}  esac
  if [[ -z $value ]]; then
    case $command,$current in
{4}    esac
  fi
  COMPREPLY=()
  local head=
  if [[ $list && $current == *,* ]]; then
    head=${{current%,*}},
    current=${{current##*,}}
  fi
  if [[ $words ]]; then
    while read -r word; do COMPREPLY+=("$head$word"); done < <(compgen -W "$words" -- "$current")
  fi
  if [[ $files ]]; then
    compopt -o filenames 2>/dev/null
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
  fi
}}
complete -F {1} {0}
)",
      tool.name, function_of(tool), find_command, values, words);
}

// Zsh

// The text of a [description], in which brackets end it and a colon a field.
std::string zsh_text(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

// ":message:action" of a value.
std::string zsh_value(const OptionDescription& option) {
  std::string action;
  const std::string choices = fmt::format("{}", fmt::join(option.choices, " "));
  if (option.is_list) {
    action = fmt::format("_values -s , name {}", choices);
  } else if (!option.choices.empty() && option.takes_files) {
    action = fmt::format("{{compadd -- {}; _files}}", choices);
  } else if (!option.choices.empty()) {
    action = fmt::format("({})", choices);
  } else if (option.takes_files) {
    action = "_files";
  }
  const std::string message = option.choices.empty() && !option.takes_files ? option.type : "value";
  return fmt::format("{}{}:{}", option.is_optional ? "::" : ":", zsh_text(message), action);
}

std::string zsh_option(const OptionDescription& option) {
  const std::string text = fmt::format("[{}]", zsh_text(brief(option.help)));
  std::vector<std::string> names = option.names;
  std::string exclusive;
  if (names.size() > 1) exclusive = shell_quoted(fmt::format("({})", fmt::join(names, " ")));
  for (std::string& name : names) {
    if (!option.type.empty()) name += name.starts_with("--") ? "=" : "+";
  }
  const std::string what = shell_quoted(text + (option.type.empty() ? "" : zsh_value(option)));
  if (names.size() > 1) return fmt::format("{}{{{}}}{}", exclusive, fmt::join(names, ","), what);
  return shell_quoted(names[0]) + what;
}

std::string zsh_arguments(const CommandDescription& command, std::string_view indent) {
  std::vector<std::string> specs;
  for (const OptionDescription& option : command.options) specs.push_back(zsh_option(option));
  for (const OptionDescription& argument : command.arguments) {
    specs.push_back(shell_quoted((argument.is_required ? ":" : "::") + zsh_text(argument.names[0]) +
                                 zsh_value(argument).substr(zsh_value(argument).rfind(':'))));
  }
  return fmt::format("_arguments -s {}", fmt::join(specs, fmt::format(" \\\n{}", indent)));
}

std::string zsh(const CommandDescription& tool) {
  std::string body;
  if (tool.subcommands.empty()) {
    body = "  " + zsh_arguments(tool, "    ") + "\n";
  } else {
    std::string subcommands, cases;
    for (const CommandDescription& each : tool.subcommands) {
      subcommands +=
          fmt::format(" \\\n        {}", shell_quoted(fmt::format("{}:{}", short_name(each), brief(each.title))));
      cases += fmt::format("        {})\n          {} ;;\n", short_name(each), zsh_arguments(each, "            "));
    }
    body = fmt::format(
        "  local curcontext=$curcontext state line\n"
        "  typeset -A opt_args\n"
        "  {} \\\n"
        "    '1: :->subcommand' '*:: :->argument'\n"
        "  case $state in\n"
        "    subcommand)\n"
        "      local -a subcommands=({})\n"
        "      _describe subcommand subcommands ;;\n"
        "    argument)\n"
        "      case $line[1] in\n"
        "{}"
        "      esac ;;\n"
        "  esac\n",
        "_arguments -C" + zsh_arguments(tool, "    ").substr(std::string_view("_arguments").size()), subcommands,
        cases);
  }
  return fmt::format("#compdef {0}\n# Zsh completion for {0}.\n{1}() {{\n{2}}}\n{1} \"$@\"\n", tool.name,
                     function_of(tool), body);
}

// Fish

std::string fish_quoted(std::string_view text) { return shell_quoted(text, "\\'"); }

std::string fish_values(const OptionDescription& option) {
  std::string values = option.takes_files ? " -F" : " -f";
  if (!option.choices.empty()) values += " -a " + fish_quoted(fmt::format("{}", fmt::join(option.choices, " ")));
  return values;
}

std::string fish_command(const CommandDescription& tool, const CommandDescription& command) {
  const bool is_tool = &tool == &command;
  std::string start = "complete -c " + tool.name;
  if (!is_tool) start += fmt::format(" -n '__fish_seen_subcommand_from {}'", short_name(command));
  if (is_tool && !tool.subcommands.empty()) start += " -n __fish_use_subcommand";
  std::string script;
  for (const OptionDescription& option : command.options) {
    script += start;
    for (const std::string& name : option.names) {
      script += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    }
    if (!option.type.empty()) script += (option.is_optional ? "" : " -r") + fish_values(option);
    script += fmt::format(" -d {}\n", fish_quoted(brief(option.help)));
  }
  for (const OptionDescription& argument : command.arguments) script += start + fish_values(argument) + "\n";
  return script;
}

std::string fish(const CommandDescription& tool) {
  std::string script = fmt::format("# Fish completion for {0}.\ncomplete -c {0} -f\n", tool.name);
  script += fish_command(tool, tool);
  for (const CommandDescription& each : tool.subcommands) {
    script += fmt::format("complete -c {} -n __fish_use_subcommand -a {} -d {}\n", tool.name, short_name(each),
                          fish_quoted(brief(each.title)));
    script += fish_command(tool, each);
  }
  return script;
}

}  // namespace

std::string completion_script(const CommandDescription& tool, std::string_view shell) {
  if (shell == "bash") return bash(tool);
  if (shell == "zsh") return zsh(tool);
  assert(shell == "fish");
  return fish(tool);
}

}  // namespace dualpipe
