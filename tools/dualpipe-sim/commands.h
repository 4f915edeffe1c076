// The subcommands. Each adds itself to the command line and runs when it is parsed; what it throws, main() prints.
#pragma once

#include <CLI/CLI.hpp>

namespace dualpipe {

void add_table(CLI::App& app);
void add_simulate(CLI::App& app);
void add_estimate(CLI::App& app);
void add_sweep(CLI::App& app);
void add_merge(CLI::App& app);
void add_report(CLI::App& app);
void add_explain(CLI::App& app);
void add_search(CLI::App& app);
void add_partition(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_schedules(CLI::App& app);
void add_validate(CLI::App& app);
void add_convert(CLI::App& app);
void add_compare(CLI::App& app);
void add_help(CLI::App& app);

}  // namespace dualpipe
