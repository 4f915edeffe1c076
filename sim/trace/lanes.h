// The lanes of a trace, which are the threads of its process: one per rank and kind of slice, and more where slices of
// a kind overlap. Private to sim/trace.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/trace_writer.h"

namespace dualpipe::detail::trace {

inline constexpr int trace_pid = 1000;

// Numbers the threads from 1 on, in the order in which they are asked for, and steps over the pid.
class Tracks {
 public:
  [[nodiscard]] TraceTrack next() {
    if (++tid_ == trace_pid) ++tid_;
    return {trace_pid, tid_};
  }

 private:
  int tid_ = 0;
};

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

 private:
  std::vector<Time> free_at_;  // by lane
};

// "exchange", "exchange (2)".
[[nodiscard]] inline std::string numbered(std::string_view text, int lane) {
  return lane == 0 ? std::string(text) : fmt::format("{} ({})", text, lane + 1);
}

}  // namespace dualpipe::detail::trace
