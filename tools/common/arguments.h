// What CLI11 is told of a command line, after what it would not say as well, or would read otherwise than people mean
// it.
#pragma once

#include <CLI/CLI.hpp>
#include <span>
#include <string>
#include <vector>

namespace dualpipe {

// The arguments, without the program's name, as CLI11 is to have them.
//
// An option whose value may be left out takes the next argument for its value, but not where that is the schedule:
// where the schedule is still missing, and this argument is a name of the catalog, or the only one that can be it.
//
//   simulate --gantt 1f1b -p 4 -m 8      draws 1f1b to standard output
//   simulate --gantt mine.csv            so it does a file
//   simulate --gantt chart 1f1b -p 4 …   draws to a file
//   simulate --gantt=1f1b mine.csv       whatever it is called
//
// Throws CLI::ValidationError, wrong usage, for an unknown option or subcommand, with the one that may have been meant;
// and where two arguments could be the schedule.
[[nodiscard]] std::vector<std::string> settled_arguments(CLI::App& app, std::span<const char* const> arguments);

}  // namespace dualpipe
