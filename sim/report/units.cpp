#include "dualpipe/sim/report/units.h"

#include <algorithm>
#include <cassert>

namespace dualpipe::detail::report {

std::vector<Unit> units_of(std::span<const Op> ops, std::span<const Span> spans) {
  assert(ops.size() == spans.size());
  std::vector<Unit> units;
  units.reserve(ops.size());
  for (std::size_t i = 0; i < ops.size();) {
    const std::size_t size = unit_size(ops.subspan(i));
    units.push_back({ops.subspan(i, size), spans[i], i});
    i += size;
  }
  return units;
}

std::vector<Unit> units_of(const Program& program, const Timeline& timeline, int rank) {
  assert(timeline.ops.size() == program.schedule.ops.size());
  const auto ops = program.schedule.rank(rank);
  const std::size_t begin = program.schedule.rank_begin[static_cast<std::size_t>(rank)];
  return units_of(ops, std::span(timeline.ops).subspan(begin, ops.size()));
}

Span bounds_of(const Timeline& timeline) {
  if (timeline.ops.empty()) return {};
  Span bounds = timeline.ops.front();
  for (const Span& span : timeline.ops) {
    bounds.start = std::min(bounds.start, span.start);
    bounds.end = std::max(bounds.end, span.end);
  }
  return bounds;
}

std::size_t class_of(const Unit& unit) { return unit.is_pair() ? 4 : static_cast<std::size_t>(unit.ops[0].kind); }

}  // namespace dualpipe::detail::report
