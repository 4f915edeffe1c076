// What the automatic families share: their order is planned, for the costs and the memory limit of a request. A planner
// decides what runs next on which rank, and when, with the clock of a rank in hand; this is what it knows of the costs.
// Private to sim.
#pragma once

#include <cstdint>
#include <vector>

#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/schedule_builder.h"

namespace dualpipe::detail::generate {

// Times as simulate() takes them: on the stage's rank, with its speed, but without jitter. The overhead before the next
// op of the rank counts as a part of an op, and so is no part of the delay behind it.
struct PlannedStage {
  Time forward = 0;
  Time input_gradient = 0;
  Time weight_gradient = 0;
  // From the end of an op on another rank until its result is here: what F needs, and what I needs.
  Time activation_delay = 0;
  Time gradient_delay = 0;
};

// What any stage of a rank holds at most, from F to I, and from I to W. Stages that hold less are counted as if they
// did not: so a rank's forwards can always be exchanged for each other.
struct PlannedRank {
  Bytes activation = 0;
  Bytes stash = 0;  // at most `activation`
  Bytes limit = 0;  // of all that it holds
};

struct Plan {
  std::int64_t micro_batches = 0;
  std::vector<PlannedStage> stages;
  std::vector<PlannedRank> ranks;
};

struct PlannedPass {
  Kind kind;
  std::uint16_t stage;
};
// By rank. The passes of a stage take its micro-batches in order.
using PlannedOrder = std::vector<std::vector<PlannedPass>>;

struct Planner {
  // No rank holds more than its limit, which is at least `activations_least` times its activation.
  PlannedOrder (*order)(const Plan& plan);
  std::int64_t activations_least;
  std::int64_t activations_given;  // the limit where the request has none
};

// Throws MemoryLimitError where no order keeps the limit of the request, InputError where its costs do not fit or a
// limit in bytes has no costs to go with.
void add_planned_order(const Request& request, const Planner& planner, ScheduleBuilder& builder);

}  // namespace dualpipe::detail::generate
