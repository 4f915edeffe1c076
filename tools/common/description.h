// What a command line offers, as help, completion and manual pages show it: read from the CLI::App, so that they all
// say what is parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace dualpipe {

// The type of a value says what it may be, for --help and for a shell that completes it:
//
//   {csv,json}   one of these        FILE, [FILE]   a file; [FILE] may be left out
//   NAME|FILE    a schedule: a name of the catalog, or a file
//   NAMES        names of the catalog, with commas between them
//   TIME, N, …   what nobody can complete
struct OptionDescription {
  std::vector<std::string> names;  // "-f", "--forward"; of an argument without dashes its name alone
  std::string type;                // empty: a flag
  std::string default_value;
  std::string help;   // all in a paragraph
  std::string group;  // the heading that it stands under
  bool is_required = false;

  std::vector<std::string> choices;  // what completes the value, besides files
  bool takes_files = false;
  bool is_list = false;
  bool is_optional = false;  // the value may be left out
};

struct CommandDescription {
  std::string name;  // "dualpipe-sim table"
  std::string title;
  std::vector<OptionDescription> arguments;  // those without dashes
  std::vector<OptionDescription> options;    // group by group
  std::vector<CommandDescription> subcommands;
  std::string footer;  // paragraphs; lines that begin with two blanks are commands
};

[[nodiscard]] OptionDescription describe(const CLI::Option& option);
[[nodiscard]] CommandDescription describe(const CLI::App& app);

// The subcommand of this name; null: there is none.
[[nodiscard]] CLI::App* find_subcommand(CLI::App& app, const std::string& name);

// The last word of its name.
[[nodiscard]] std::string_view short_name(const CommandDescription& command);

}  // namespace dualpipe
