// Optima that a solver has proven (optima.csv says how).
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::test {

struct Optimum {
  std::string line;  // of the file
  Placement placement;
  std::int64_t micro_batches = 0;
  bool by_span = false;
  Costs costs;
  Bytes limit = 0;
  Time optimum = 0;
  Time bound = 0;  // by the formulas, as a prototype computed it
};
std::ostream& operator<<(std::ostream& out, const Optimum& optimum);

[[nodiscard]] const std::vector<Optimum>& optima();

}  // namespace dualpipe::test
