// One run of the engine: a Timeline, or the cycle that stops it. Private to sim/simulate.
#pragma once

#include <optional>

#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe::detail::simulate {

struct Outcome {
  Timeline timeline;
  std::optional<Deadlock> deadlock;  // then the timeline is empty
};

[[nodiscard]] Outcome execute(const Program& program, const Costs& costs, Record record);

}  // namespace dualpipe::detail::simulate
