#include "dualpipe/sim/schedule/schedule_builder.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "dualpipe/sim/schedule/large_vector.h"

namespace dualpipe {

using detail::schedule::reserve_large;

ScheduleBuilder::ScheduleBuilder(Placement placement, std::uint32_t micro_batches, std::size_t ops_expected)
    : runs_{{0, 0}} {
  schedule_.placement = std::move(placement);
  schedule_.micro_batches = micro_batches;
  reserve_large(schedule_.ops, ops_expected);
}

void ScheduleBuilder::begin_run(int rank) { runs_.push_back({rank, schedule_.ops.size()}); }

template <typename Visit>
void ScheduleBuilder::for_each_run(Visit visit) const {
  const std::span ops(schedule_.ops);
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const std::size_t end = i + 1 < runs_.size() ? runs_[i + 1].begin : ops.size();
    visit(static_cast<std::size_t>(runs_[i].rank), ops.subspan(runs_[i].begin, end - runs_[i].begin));
  }
}

void ScheduleBuilder::sort_by_rank() {
  std::vector<Op> sorted;
  reserve_large(sorted, schedule_.ops.size());
  sorted.resize(schedule_.ops.size());
  std::vector<std::size_t> next(schedule_.rank_begin.begin(), schedule_.rank_begin.end() - 1);
  for_each_run([&](std::size_t rank, std::span<const Op> ops) {
    std::ranges::copy(ops, sorted.begin() + static_cast<std::ptrdiff_t>(next[rank]));
    next[rank] += ops.size();
  });
  schedule_.ops = std::move(sorted);
}

Schedule ScheduleBuilder::take(std::string name) {
  schedule_.name = std::move(name);
  auto& begin = schedule_.rank_begin;
  begin.assign(static_cast<std::size_t>(schedule_.ranks()) + 1, 0);
  for_each_run([&](std::size_t rank, std::span<const Op> ops) { begin[rank + 1] += ops.size(); });
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  if (!std::ranges::is_sorted(runs_, {}, &Run::rank)) sort_by_rank();
  return std::move(schedule_);
}

}  // namespace dualpipe
