// One of the costs by its name, as text: what a sweep varies. Names are those of the options of the command line
// without their dashes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"

namespace dualpipe {

[[nodiscard]] std::vector<std::string> cost_names();
// Whether it is one of MachineCosts; else it is of stages, or of parts.
[[nodiscard]] bool is_machine_cost(std::string_view name);

// Of all stages, or parts. The value is as the option has it, "20us"; or a multiple of what is there, "1.5x".
//
//   backward   B; I = B - W. A multiple is one of B, I and W
//   weight     W; I = B - W. A multiple leaves I as it is, and B changes with W
//
// Throws InputError for an unknown name, with the one that may have been meant, and for a value that cannot be read, or
// be a multiple, or that makes the costs invalid.
void set_cost(GivenCosts& costs, std::string_view name, std::string_view value);

}  // namespace dualpipe
