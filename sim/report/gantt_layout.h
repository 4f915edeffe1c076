// What the text and the SVG Gantt have in common: what of a run is drawn, and columns that keep the shares of a row.
// Private to sim/report.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::report {

// The classes of class_of(), and idle time.
inline constexpr std::size_t idle_class = class_names.size();
inline constexpr std::size_t class_count = idle_class + 1;

// What is drawn of a run.
struct Chart {
  // `asked`: since the start of the first op; without, all of the run. Throws what window_of() throws.
  Chart(const Program& program, const Timeline& timeline, const std::optional<Span>& asked);

  Time origin = 0;                             // the start of the run's first op, from which times are counted
  Span window;                                 // as in the timeline
  std::vector<std::vector<Unit>> units;        // by rank: those that reach into the window
  std::array<bool, class_names.size()> has{};  // by class: whether one of its units does

  // The part of a unit that is in the window.
  [[nodiscard]] Span shown(const Unit& unit) const;
  [[nodiscard]] Time length() const { return window.end - window.start; }
};

// A part of the time axis in columns of equal duration, which need not be whole nanoseconds.
struct Columns {
  Span window;
  int count = 0;
};

// For each column the unit that it shows, or nothing: idle time.
//
// A column has room for one unit, and may be as long as many. So that a row shows what the rank does all the same, the
// columns of a class, and those of idle time, are as many as their share of the row, to less than one column: one of n
// classes is off by at most 1 - 1 / (2n - 2) columns, in any part of the row that begins at its left, before units that
// share a column are put into their order (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32,
// 1980). Units come in the order in which they run. Where each column holds one unit alone, it shows that one.
[[nodiscard]] std::vector<std::optional<std::size_t>> fill(const Columns& columns, std::span<const Unit> units);

// part * size / whole, rounded towards 0. Exact, though the product of a time and a size may not fit into 64 bits; the
// quotient has to. `whole` is above 0.
[[nodiscard]] std::int64_t scaled(Time part, std::int64_t size, Time whole);

// The smallest of 1, 2, 5, 10, 20, 50, … that is not below `at_least`: the distance of ticks. 5 * 10^18
// is the largest there is.
[[nodiscard]] Time round_up_to_tick(Time at_least);

// For each stage its place among the stages of its rank, counted from 0. In DualPipe this is the chain, in a V the
// half, and else the chunk.
[[nodiscard]] std::vector<int> chunk_of_stages(const Placement& placement);

}  // namespace dualpipe::detail::report
