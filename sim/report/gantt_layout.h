// How the text and the SVG Gantt cut the time axis into columns. Private to sim/report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::report {

// A time axis in columns of equal duration.
struct Columns {
  Time begin = 0;
  Time duration = 1;  // of one column
  int count = 0;

  // The column that holds the time, or `count` at the end.
  [[nodiscard]] int at(Time time) const { return static_cast<int>((time - begin) / duration); }
};

// At most `count_max` columns over `bounds`; the duration of one is rounded up to two digits, to be readable.
[[nodiscard]] Columns columns_over(Span bounds, int count_max);

// part * size / whole, rounded towards 0. Exact, though the product of a time and a size may not fit into 64 bits.
// `part` must not exceed `whole`, which is above 0.
[[nodiscard]] std::int64_t scaled(Time part, std::int64_t size, Time whole);

// For each column the unit that fills most of it, and of equals the earlier one; nothing where idle time fills most.
[[nodiscard]] std::vector<std::optional<std::size_t>> fill(const Columns& columns, std::span<const Unit> units);

// The smallest of 1, 2, 5, 10, 20, 50, … that is not below `at_least`: the distance of ticks. 5 * 10^18
// is the largest there is.
[[nodiscard]] Time round_up_to_tick(Time at_least);

// For each stage its place among the stages of its rank, counted from 0. In DualPipe this is the chain, in a V the
// half, and else the chunk.
[[nodiscard]] std::vector<int> chunk_of_stages(const Placement& placement);

}  // namespace dualpipe::detail::report
