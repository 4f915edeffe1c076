// Costs from a run that was measured, so that plans start from what really happened.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/explain/measured_messages.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct MeasuredCosts {
  Costs costs;  // of each stage; messages by latency alone, unless their sizes are known
  std::vector<std::string> remarks;
};

// Medians, of two in the middle their mean: of each stage's passes; as latency, of what went by from the end of an op
// to the start of the one on another rank that waited for its result last; as launch, of what went by between two ops
// where the second waited for nothing but the rank, and no message to it can have been on its way still. What did not
// run is taken from what did (complete() in measured_passes.h); where I and W are halves of B, that is remarked on.
// The timeline needs spans of ops alone.
//
// `messages`: of the run, where they were recorded. Their sizes are those of the stages (the median on each link);
// where size makes a difference it is the bandwidth, and latency is what is left. A timeline with the spans of messages
// tells launch and messages apart exactly.
[[nodiscard]] MeasuredCosts measured_costs(const Program& program, const Timeline& timeline,
                                           std::span<const MeasuredMessage> messages = {});

}  // namespace dualpipe
