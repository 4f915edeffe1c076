// What the benchmarks of the simulator share.
#pragma once

#include "dualpipe/sim/costs/costs.h"

namespace dualpipe {

// Durations of a 1.5B model's stages (the zero-bubble paper's, in microseconds, as if they were nanoseconds).
[[nodiscard]] Costs typical_costs(CommunicationModel model);

void register_search();

}  // namespace dualpipe
