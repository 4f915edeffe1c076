// Schedules and programs that are made from others, op by op: in the same order, under the same name. The one given
// must be valid (validate.h), and so is the result.
#pragma once

#include <span>

#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

// Every pass by itself: a pair as F and then B, a B as I and then W.
[[nodiscard]] Schedule split_passes(const Schedule& schedule);

// The forwards alone: evaluation.
[[nodiscard]] Schedule forwards_of(const Schedule& schedule);

// What rank r did is done by rank `rank_of[r]`; `rank_of` names each rank once.
[[nodiscard]] Program renumber_ranks(const Program& program, std::span<const int> rank_of);

// Stages that share weights keep their gradients to themselves: nothing is summed, and each has weights of its own.
[[nodiscard]] Program without_reductions(Program program);

}  // namespace dualpipe
