// What the tools have in common on the command line: the options of sim/options/, and how these are described.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/options/schedule_options.h"
#include "dualpipe/sim/options/shape_options.h"

namespace dualpipe {

// An option whose value is one of some. Another one is a bad value, for which the error says what may have been meant.
// What the value is before is the default.
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help);

// An option that names a file for a result, and without one means standard output.
CLI::Option* add_output(CLI::App& app, const std::string& name, std::string& path, const std::string& help);

// An option whose value is a list with commas. An empty item is wrong usage.
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help);

// Chunks and the like.
void add_parameters(CLI::App& app, ShapeOptions& shape);

void add_costs(CLI::App& app, CostOptions& costs);
// Those of a stage's ops alone.
void add_durations(CLI::App& app, CostOptions& costs);
// Those that an automatic schedule is planned with, and that a memory limit is compared with.
void add_planned_costs(CLI::App& app, CostOptions& costs);

// `name`: of the option, or of the argument without dashes, that names the source.
void add_schedule(CLI::App& app, ScheduleOptions& schedule, const std::string& name = "SCHEDULE");

}  // namespace dualpipe
