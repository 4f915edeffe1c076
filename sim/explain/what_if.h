// What would make a run shorter: each answer is a simulation of its own, never a derivative, as the critical path moves
// when something on it changes. (For a fixed order the makespan is convex in the durations: what is made faster by x
// gains at most x of what of it was on the path.)
//
//   F of all stages 10 % faster · F, B, I, W or F&B of one stage 10 % faster · half the latency, twice the bandwidth,
//   half the launch overhead · results of pairs released early · receives posted an op earlier (stream) · a boundary
//   between two stages moved by one part of the model · one more micro-batch · one rank 5 % slower · another schedule
//   of the catalog, for the same model on the same ranks
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

struct WhatIf {
  std::string change;  // "F of stage 3 10 % faster"
  Time makespan = 0;
  double gain = 0;  // the share of the time per micro-batch that it saves; below 0 it costs so much

  friend bool operator==(const WhatIf&, const WhatIf&) = default;
};

// What is explained. All that it refers to outlives the call.
struct WhatIfBase {
  const Program& program;
  const GivenCosts& given;                       // as the user has them: other schedules and cuts are made of these
  const Costs& costs;                            // of the program's stages
  const Explanation& explanation;                // of the program under these costs
  std::optional<Shape> shape = {};               // that it was generated with; none: it is of a file
  std::optional<MemoryLimit> memory_limit = {};  // other schedules keep it, or are left out
};

// Best first; of equals, in the order above. What cannot be, or would hang, is left out, and so is what is known to
// gain nothing: an op made faster of which none is on the critical path. The same for any number of threads; 0: one for
// every core.
[[nodiscard]] std::vector<WhatIf> what_if(const WhatIfBase& base, unsigned threads = 0);

}  // namespace dualpipe
