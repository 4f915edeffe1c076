// Costs from a measured run: what `dualpipe-sim --costs` reads, and what predictions of other schedules are made from.
//
// Durations are medians over all steps, per stage and pass. What a stage does not run by itself is taken from stages
// with the same weights, else
//   B        is I + W
//   F, B     are the median of the other stages'; where no stage has them, a third and two thirds of an F&B pair
//   I, W     are B, split as in the stages that have them, or in two
#pragma once

#include <span>

#include "exec/train/train.h"
#include "sim/schedule/program.h"
#include "sim/simulate/costs.h"

namespace dualpipe {

// `steps`: what was recorded of each, at least one. `stages`: as in TrainResult.
//
// launch is the median time between two ops of a rank that is not spent waiting for an input. The communication model
// is `latency`: the median time from the end of the op that makes a message to its arrival, of messages that were
// waited for. An activation takes the peak memory of its rank, divided by the activations held then.
[[nodiscard]] Costs calibrate(const Program& program, std::span<const RankRecords> steps,
                              std::span<const StageBytes> stages);

}  // namespace dualpipe
