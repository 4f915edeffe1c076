// A part of a run's time, as users give it: since the start of the run's first op.
#pragma once

#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// The same as times of the timeline. It may end after the run, whose reductions do, too; but throws InputError where it
// is empty, or begins when the last op has ended. The timeline must have recorded spans.
[[nodiscard]] Span window_of(const Timeline& timeline, Span since_first_op);

}  // namespace dualpipe
