// Costs in Python.
#pragma once

#include <nanobind/nanobind.h>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/options/cost_options.h"

namespace dualpipe::python {

// What things cost, and as what it was said: nothing, where it was measured.
struct CostsValue {
  GivenCosts given;
  CostOptions said = {};
};

void bind_costs(nanobind::module_& module);

// The costs among the arguments, which are taken from these: the keyword `costs`, a path or Costs, or the keywords of
// the options. Throws InputError, and TypeError as read().
[[nodiscard]] CostsValue take_costs(nanobind::kwargs& arguments);
// Of a signature: "costs: …, forward: …".
[[nodiscard]] std::string costs_signature();

}  // namespace dualpipe::python
