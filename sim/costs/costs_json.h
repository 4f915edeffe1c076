// Costs as in a costs file, within another document. Private to sim.
#pragma once

#include <nlohmann/json.hpp>
#include <sstream>

#include "dualpipe/sim/costs/costs_file.h"

namespace dualpipe::detail::costs {

[[nodiscard]] inline nlohmann::ordered_json costs_json(const GivenCosts& costs) {
  std::ostringstream text;
  write_costs(text, costs);
  return nlohmann::ordered_json::parse(text.str());
}

}  // namespace dualpipe::detail::costs
