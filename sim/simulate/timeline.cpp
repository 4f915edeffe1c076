#include "dualpipe/sim/simulate/timeline.h"

#include <algorithm>

namespace dualpipe {
namespace {

double bubble_rate(const Timeline& timeline, Time cost) {
  if (cost == 0) return 0;
  double busy = 0;
  for (const RankTimes& rank : timeline.ranks) busy += static_cast<double>(rank.busy);
  return 1 - busy / (static_cast<double>(timeline.ranks.size()) * static_cast<double>(cost));
}

}  // namespace

Time Timeline::makespan() const {
  if (ranks.empty()) return 0;
  return std::ranges::max_element(ranks, {}, &RankTimes::last_end)->last_end -
         std::ranges::min_element(ranks, {}, &RankTimes::first_start)->first_start;
}

Time Timeline::span() const {
  Time longest = 0;
  for (const RankTimes& rank : ranks) longest = std::max(longest, rank.span());
  return longest;
}

Time Timeline::idle(int rank) const { return makespan() - ranks[static_cast<std::size_t>(rank)].busy; }

double Timeline::bubble_rate_makespan() const { return bubble_rate(*this, makespan()); }
double Timeline::bubble_rate_span() const { return bubble_rate(*this, span()); }

}  // namespace dualpipe
