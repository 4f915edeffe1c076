// What the text and the SVG Gantt have in common: what of a run is drawn, and columns that keep the shares of a row.
// Private to sim/report.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::report {

// The classes of class_of(); idle time of which nobody says why; and idle time by its cause.
inline constexpr std::size_t idle_class = class_names.size();
inline constexpr std::size_t class_count = idle_class + 1 + cause_names.size();
[[nodiscard]] constexpr std::size_t class_of(Cause cause) { return idle_class + 1 + static_cast<std::size_t>(cause); }
// Of the class of idle time with a cause.
[[nodiscard]] constexpr Cause cause_of(std::size_t idle) { return static_cast<Cause>(idle - idle_class - 1); }

// What is drawn of a run.
struct Chart {
  // `asked`: since the start of the first op; without, all of the run. `explanation`: of this run; null: none. Throws
  // what window_of() throws.
  Chart(const Program& program, const Timeline& timeline, const std::optional<Span>& asked,
        const Explanation* explanation = nullptr);

  Time origin = 0;                       // the start of the run's first op, from which times are counted
  Span window;                           // as in the timeline
  std::vector<std::vector<Unit>> units;  // by rank: those that reach into the window
  std::array<bool, class_count> has{};   // by class: whether one of its units does, or idle time with a cause
  // Of an explanation, what reaches into the window: idle time by rank, in order; and the ops of the critical path.
  std::vector<std::vector<IdleSegment>> idle;
  std::vector<PathStep> path;

  // The part of a unit that is in the window.
  [[nodiscard]] Span shown(const Unit& unit) const { return shown(unit.span); }
  [[nodiscard]] Span shown(Span span) const;
  [[nodiscard]] Time length() const { return window.end - window.start; }
};

// A part of the time axis in columns of equal duration, which need not be whole nanoseconds.
struct Columns {
  Span window;
  int count = 0;
};

// What a column shows: a unit, or idle time of a class.
struct Shown {
  std::size_t shown_class = idle_class;
  std::optional<std::size_t> unit;

  friend bool operator==(const Shown&, const Shown&) = default;
};

// For each column what it shows. `idle`: of the same rank, where its causes are told apart.
//
// A column has room for one unit, and may be as long as many. So that a row shows what the rank does all the same, the
// columns of a class, and those of idle time, are as many as their share of the row, to less than one column: one of n
// classes is off by at most 1 - 1 / (2n - 2) columns, in any part of the row that begins at its left, before units that
// share a column are put into their order (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32,
// 1980). Units come in the order in which they run. Where each column holds one unit alone, it shows that one.
[[nodiscard]] std::vector<Shown> fill(const Columns& columns, std::span<const Unit> units,
                                      std::span<const IdleSegment> idle = {});

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
