// The shortest schedule of a tiny shape, by going through all of them: each rank's order is free, the micro-batches of
// a stage's pass come in order. Nothing of it is sim's but the types.
#pragma once

#include <cstdint>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::test {

struct Exact {
  Time makespan = 0;
  Time span = 0;  // the least that the longest rank's can be
};

// One chain; I and W apart; the latency model; activations and stashes alone are counted, against `limits`, a rank
// each. Both 0 where no order keeps them. The number of states grows as (M + 1)^(3 S): a few thousand are quick.
[[nodiscard]] Exact exact(const Placement& placement, int micro_batches, const Costs& costs,
                          const std::vector<Bytes>& limits);

}  // namespace dualpipe::test
