// The host's monotonic clock, in which the executor takes its times. Private to exec.
#pragma once

#include <chrono>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::replay {

[[nodiscard]] inline Time time_of(std::chrono::steady_clock::time_point point) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(point.time_since_epoch()).count();
}

[[nodiscard]] inline Time now() { return time_of(std::chrono::steady_clock::now()); }

}  // namespace dualpipe::detail::replay
