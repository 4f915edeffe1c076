// What the reports share: the units that a rank runs, and the class of each. Private to sim/report and sim/trace.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::report {

// What a rank runs as one: an op, or the two of an F&B pair.
struct Unit {
  std::span<const Op> ops;
  Span span;
  std::size_t position = 0;  // of its first op in the rank

  [[nodiscard]] bool is_pair() const { return ops.size() == 2; }
  [[nodiscard]] Time duration() const { return span.end - span.start; }
};

// In the order in which the rank runs them: `ops` are all of a rank's, and `spans` theirs.
[[nodiscard]] std::vector<Unit> units_of(std::span<const Op> ops, std::span<const Span> spans);
// The timeline must have recorded spans.
[[nodiscard]] std::vector<Unit> units_of(const Program& program, const Timeline& timeline, int rank);

// From the first start to the last end over all ranks; {0, 0} where nothing runs.
[[nodiscard]] Span bounds_of(const Timeline& timeline);

// The classes by which figures are grouped: the pass of an op, or that it is a pair.
inline constexpr std::array<std::string_view, 5> class_names = {"F", "B", "I", "W", "F&B"};
// The place in class_names.
[[nodiscard]] std::size_t class_of(const Unit& unit);

}  // namespace dualpipe::detail::report
