// What main() of every tool does: parses, runs, and prints what went wrong.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace dualpipe {

// Thrown by `run` where it failed, and another process says why.
struct Reported {};

// Parses the command line, then calls `run`. Returns the exit status: 0 done, 1 bad input or failed run, 2 wrong usage;
// errors go to stderr as one block.
[[nodiscard]] int run_command_line(CLI::App& app, int argc, const char* const* argv, const std::function<void()>& run);

}  // namespace dualpipe
