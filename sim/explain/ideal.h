// What no order of the ops can go below. Private to sim/explain.
#pragma once

#include "dualpipe/sim/explain/events.h"

namespace dualpipe::detail::explain {

// The most, over all ranks, of: the way of a first micro-batch to one of the rank's stages; all that the rank runs; and
// where no W can end it, the way on from one of its stages. Of each op and message the shortest of its kind counts, so
// that it holds for any order and any draw of a jitter. `releases_early`: as in Costs; then a pair counts as nothing on
// the way.
[[nodiscard]] Time ideal_makespan(const Program& program, const Events& events, bool releases_early);

}  // namespace dualpipe::detail::explain
