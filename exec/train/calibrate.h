// Costs from a measured run: what `dualpipe-sim --costs` reads, and what predictions of other schedules are made from.
//
// The parts of the model are the stages of a chain. All figures of a part are medians over all steps, and over the
// stages at its place in all chains, which hold the same layers. What is taken for a pass that it never ran by itself
// stands at detail::explain::complete() (sim/explain/measured_passes.h); an F&B that it never ran stays unset. With
// TrainOptions::measure_passes every stage has run F, I and W.
//
// Where stages recompute, `recompute` stays 0: it is part of the B and I that were measured.
#pragma once

#include <span>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/explain/measured_messages.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// Steps that ran one program, and what was recorded of each.
struct MeasuredSteps {
  const Program& program;
  std::span<const RankRecords> steps;
};

// `runs`: programs over one placement. `stages`: as in TrainResult. Throws InputError where there is no step, or one
// that did not come to its end.
//
// Memory: M_B is what an F leaves behind, its input included and its output not. M_W is what a W frees, or M_B where no
// W ran. A workspace is what an op held at its peak above these.
//
// Communication: `launch` is the median time between two ops of a rank in which it does not wait for an input.
// `latency` is the median time of the awaited messages, less their bytes / `bandwidth` (bytes per second; 0: infinite).
// The model is `links`, or `latency` without a bandwidth.
[[nodiscard]] ModelCosts calibrate(std::span<const MeasuredSteps> runs, std::span<const StageBytes> stages,
                                   double bandwidth = 0);

// From the warm-up of a training, or without one from the measured steps.
[[nodiscard]] ModelCosts calibrate(const Program& program, const TrainResult& result);

// A message for which the receiving rank waited: it had nothing else to do before the op that needs the message. A pair
// waits for the later one of its two. (Other messages tell nothing about the time of the way, since nobody knows when
// they arrived.)
struct AwaitedMessage {
  int sender = 0;  // a stage
  bool forward = true;
  Time time = 0;  // from the end of the op that made it to the start of the op that waited
};
[[nodiscard]] std::vector<AwaitedMessage> awaited_messages(const MeasuredSteps& run);

}  // namespace dualpipe
