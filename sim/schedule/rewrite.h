// Schedules that are made from others, op by op: on the same ranks, in the same order, under the same name. The one
// given must be valid (validate.h), and so is the result.
#pragma once

#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

// Every pass by itself: a pair as F and then B, a B as I and then W.
[[nodiscard]] Schedule split_passes(const Schedule& schedule);

// The forwards alone: evaluation.
[[nodiscard]] Schedule forwards_of(const Schedule& schedule);

}  // namespace dualpipe
