// Orders that a search starts from: by rules, and by cyclic schedules. Private to sim/search.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/search/problem.h"
#include "dualpipe/sim/search/random.h"

namespace dualpipe::detail::search {

// An order, and what the evaluator says of it.
struct Candidate {
  Order order;
  Time value = 0;
};

struct Constructed {
  std::vector<Candidate> best;  // a few, shortest first; they keep the memory limit
  std::int64_t evaluations = 0;
  bool keeps_room = false;  // the cyclic schedule that they come from, in its steady state
};

// How many evaluations' worth of time it takes without what is counted.
[[nodiscard]] std::int64_t cost_of_constructing(const Problem& problem, const Ops& ops);

// Some, by rules that are drawn and, for one chain, by one cyclic schedule whose period is `stretch` times the load of
// the rank that has most. Where memory is short a longer period needs less of it; what it wastes is won back when gaps
// are filled, which ends after `evaluations` in all.
[[nodiscard]] Constructed construct(const Problem& problem, const Ops& ops, bool by_span, double stretch,
                                    std::int64_t evaluations, Random& random);

}  // namespace dualpipe::detail::search
