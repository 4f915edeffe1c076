// The lanes of a process, which are its threads: one per kind of slice, and more where slices of a kind overlap.
// Private to sim/trace.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::trace {

// Lanes are numbered from 0; the first is computation.
[[nodiscard]] inline int tid_of_lane(int lane, int pid) { return 1 + lane < pid ? 1 + lane : 2 + lane; }

// Lanes for slices that may overlap, which come by start: each goes to the first lane that is free.
class FreeLanes {
 public:
  // Which lane, and whether it is the first slice there.
  struct Place {
    int lane = 0;
    bool is_first = false;
  };
  Place take(Span span) {
    const auto free = std::ranges::find_if(free_at_, [&](Time time) { return time <= span.start; });
    const Place place{static_cast<int>(free - free_at_.begin()), free == free_at_.end()};
    if (place.is_first) free_at_.push_back(0);
    free_at_[static_cast<std::size_t>(place.lane)] = span.end;
    return place;
  }
  [[nodiscard]] int count() const { return static_cast<int>(free_at_.size()); }

 private:
  std::vector<Time> free_at_;  // by lane
};

// "exchange", "exchange (2)".
[[nodiscard]] inline std::string numbered(std::string_view text, int lane) {
  return lane == 0 ? std::string(text) : fmt::format("{} ({})", text, lane + 1);
}

}  // namespace dualpipe::detail::trace
