#include "dualpipe/sim/report/gantt_layout.h"

#include <algorithm>
#include <cassert>

namespace dualpipe::detail::report {

Columns columns_over(Span bounds, int count_max) {
  assert(count_max > 0);
  const Time length = bounds.end - bounds.start;
  Time duration = std::max<Time>(1, (length + count_max - 1) / count_max);
  Time digit = 1;
  while (duration / digit >= 100) digit *= 10;
  duration = (duration + digit - 1) / digit * digit;
  return {bounds.start, duration, static_cast<int>((length + duration - 1) / duration)};
}

std::int64_t scaled(Time part, std::int64_t size, Time whole) {
  __extension__ using Int128 = __int128;
  return static_cast<std::int64_t>(Int128{part} * size / whole);
}

std::vector<std::optional<std::size_t>> fill(const Columns& columns, std::span<const Unit> units) {
  std::vector<std::optional<std::size_t>> filled(static_cast<std::size_t>(columns.count));
  std::size_t first = 0;  // the first unit that ends after the column's begin
  for (int column = 0; column < columns.count; ++column) {
    const Time begin = columns.begin + columns.duration * column;
    const Time end = begin + columns.duration;
    while (first < units.size() && units[first].span.end <= begin) ++first;
    Time idle = columns.duration;
    Time most = 0;
    auto& chosen = filled[static_cast<std::size_t>(column)];
    for (std::size_t i = first; i < units.size() && units[i].span.start < end; ++i) {
      const Time covered = std::min(end, units[i].span.end) - std::max(begin, units[i].span.start);
      idle -= covered;
      if (covered > most) {
        most = covered;
        chosen = i;
      }
    }
    if (idle > most) chosen.reset();
  }
  return filled;
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
