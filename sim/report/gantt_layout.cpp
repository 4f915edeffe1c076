#include "dualpipe/sim/report/gantt_layout.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "dualpipe/sim/report/window.h"

namespace dualpipe::detail::report {
namespace {

__extension__ using Int128 = __int128;

// The window from end to end: units, and idle time between them. What takes no time is left out.
struct Slice {
  Span span;
  std::size_t shown_class = idle_class;
  std::optional<std::size_t> unit;
};

// Of the segments, those from `idle` on are not passed yet.
void add_idle(Span gap, std::span<const IdleSegment>& idle, std::vector<Slice>& slices) {
  while (!idle.empty() && idle.front().span.end <= gap.start) idle = idle.subspan(1);
  for (const IdleSegment& segment : idle) {
    if (segment.span.start >= gap.end) break;
    const Time end = std::min(segment.span.end, gap.end);
    slices.push_back({{gap.start, end}, class_of(segment.cause), std::nullopt});
    gap.start = end;
  }
  if (gap.start < gap.end) slices.push_back({gap, idle_class, std::nullopt});
}

std::vector<Slice> slices_in(Span window, std::span<const Unit> units, std::span<const IdleSegment> idle) {
  std::vector<Slice> slices;
  Time end = window.start;
  for (std::size_t i = 0; i < units.size(); ++i) {
    const Span shown{std::max(units[i].span.start, end), std::min(units[i].span.end, window.end)};
    if (shown.start >= shown.end) continue;
    if (shown.start > end) add_idle({end, shown.start}, idle, slices);
    slices.push_back({shown, class_of(units[i]), i});
    end = shown.end;
  }
  if (end < window.end) add_idle({end, window.end}, idle, slices);
  return slices;
}

// How much of each class there is up to the end of each column. Times are in nanoseconds divided by the number of
// columns, so that a column lasts as many of them as all columns last nanoseconds.
using Passed = std::array<std::vector<Int128>, class_count>;

Passed passed_in(const Columns& columns, std::span<const Slice> slices) {
  const Int128 column_length = columns.window.end - columns.window.start;
  Passed passed;
  for (auto& of_class : passed) of_class.assign(static_cast<std::size_t>(columns.count), 0);
  for (const Slice& slice : slices) {
    Int128 begin = Int128{slice.span.start - columns.window.start} * columns.count;
    const Int128 end = Int128{slice.span.end - columns.window.start} * columns.count;
    while (begin < end) {
      const Int128 column = begin / column_length;
      const Int128 until = std::min(end, (column + 1) * column_length);
      passed[slice.shown_class][static_cast<std::size_t>(column)] += until - begin;
      begin = until;
    }
  }
  for (auto& of_class : passed) std::partial_sum(of_class.begin(), of_class.end(), of_class.begin());
  return passed;
}

// The class that each column shows, by Tijdeman's rule: of those that have been shown too little by 1 / (2n - 2)
// columns or more, it is the turn of the one that first would be by the bound.
std::vector<std::size_t> classes_shown(const Columns& columns, const Passed& passed) {
  const auto count = static_cast<std::size_t>(columns.count);
  std::vector<std::size_t> present;
  for (std::size_t each = 0; each < class_count; ++each) {
    if (passed[each].back() > 0) present.push_back(each);
  }
  if (present.size() == 1) return std::vector<std::size_t>(count, present[0]);
  const Int128 column_length = columns.window.end - columns.window.start;
  const auto parts = static_cast<Int128>(2 * present.size() - 2);
  std::array<Int128, class_count> shown{};
  std::array<std::size_t, class_count> due{};  // the column in which it must have been shown once more
  std::vector<std::size_t> classes;
  for (std::size_t column = 0; column < count; ++column) {
    std::optional<std::size_t> next;
    for (const std::size_t each : present) {
      const auto lack = [&](std::size_t at) { return (passed[each][at] - shown[each]) * parts; };
      if (lack(column) < column_length) continue;
      while (due[each] < count && lack(due[each]) < (parts - 1) * column_length) ++due[each];
      if (!next || due[each] < due[*next]) next = each;
    }
    assert(next);  // all lack one column together
    shown[*next] += column_length;
    classes.push_back(*next);
  }
  return classes;
}

// Which slice a column of a class shows: the one that runs when half of the column's time has passed, of all the time
// that the class has.
struct Turns {
  std::vector<std::size_t> slices;  // of the class
  std::size_t at = 0;
  Int128 end = 0;           // of slice `at`, in the time of the class
  Int128 twice_middle = 0;  // of the column

  [[nodiscard]] std::size_t next(const Columns& columns, std::span<const Slice> all) {
    const auto duration = [&](std::size_t i) { return Int128{all[i].span.end - all[i].span.start} * columns.count; };
    const Int128 column_length = columns.window.end - columns.window.start;
    if (twice_middle == 0) end = duration(slices[0]);
    twice_middle += twice_middle == 0 ? column_length : 2 * column_length;
    while (end * 2 < twice_middle && at + 1 < slices.size()) end += duration(slices[++at]);
    return slices[at];
  }
};

}  // namespace

Chart::Chart(const Program& program, const Timeline& timeline, const std::optional<Span>& asked,
             const Explanation* explanation)
    : origin(bounds_of(timeline).start), window(bounds_of(timeline)) {
  if (asked) {
    const Span part = window_of(timeline, *asked);
    window = {part.start, std::min(part.end, window.end)};
  }
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    auto& row = units.emplace_back(units_of(program, timeline, rank));
    if (asked) {
      std::erase_if(row,
                    [&](const Unit& unit) { return unit.span.end <= window.start || unit.span.start >= window.end; });
    }
    for (const Unit& unit : row) has[class_of(unit)] = true;
  }
  idle.resize(units.size());
  if (explanation == nullptr) return;
  const auto is_inside = [&](Span span) { return span.end > window.start && span.start < window.end; };
  for (const IdleSegment& segment : explanation->segments) {
    if (!is_inside(segment.span)) continue;
    idle[static_cast<std::size_t>(segment.rank)].push_back(segment);
    has[class_of(segment.cause)] = true;
  }
  for (const PathStep& step : explanation->path) {
    if (step.kind == PathStep::Kind::op && is_inside(step.span)) path.push_back(step);
  }
}

Span Chart::shown(Span span) const { return {std::max(span.start, window.start), std::min(span.end, window.end)}; }

std::vector<Shown> fill(const Columns& columns, std::span<const Unit> units, std::span<const IdleSegment> idle) {
  if (columns.count == 0) return {};
  const auto slices = slices_in(columns.window, units, idle);
  std::array<Turns, class_count> turns;
  for (std::size_t i = 0; i < slices.size(); ++i) turns[slices[i].shown_class].slices.push_back(i);
  std::vector<std::size_t> shown;
  for (const std::size_t each : classes_shown(columns, passed_in(columns, slices))) {
    shown.push_back(turns[each].next(columns, slices));
  }
  // Classes take turns by when they are due, which may turn round two that share a column.
  std::ranges::sort(shown);
  std::vector<Shown> filled;
  for (const std::size_t slice : shown) filled.push_back({slices[slice].shown_class, slices[slice].unit});
  return filled;
}

std::int64_t scaled(Time part, std::int64_t size, Time whole) {
  return static_cast<std::int64_t>(Int128{part} * size / whole);
}

Time round_up_to_tick(Time at_least) {
  Time power = 1;
  while (true) {
    for (const Time factor : {1, 2, 5}) {
      if (factor * power >= at_least) return factor * power;
    }
    power *= 10;
  }
}

std::vector<int> chunk_of_stages(const Placement& placement) {
  std::vector<int> count(static_cast<std::size_t>(placement.ranks));
  std::vector<int> chunks;
  for (const auto rank : placement.rank_of) chunks.push_back(count[rank]++);
  return chunks;
}

}  // namespace dualpipe::detail::report
