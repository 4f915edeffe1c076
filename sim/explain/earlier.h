// A program whose receives are posted earlier. Private to sim/explain.
#pragma once

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::explain {

// Each receive stands one op earlier on its rank, as the last message of the last batch there; those of the first slot
// stay. Such a program may hang where messages go in order.
[[nodiscard]] Program with_earlier_receives(const Program& program);

}  // namespace dualpipe::detail::explain
