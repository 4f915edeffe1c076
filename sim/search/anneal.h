// Simulated annealing of an order: ops are moved within their rank's word, half of them on the critical path. Private
// to sim/search.
#pragma once

#include <cstdint>
#include <functional>

#include "dualpipe/sim/search/evaluator.h"
#include "dualpipe/sim/search/random.h"

namespace dualpipe::detail::search {

struct Annealing {
  bool by_span = false;
  Time bound = 0;                 // where it ends, as nothing is shorter
  std::int64_t evaluations = 0;   // how many at most
  double hot = 0.1;               // temperature at the beginning, in mean durations of an op
  double cold = 0.001;            // and at the end
  std::int64_t reach = 32;        // how far an op moves, at most
  std::function<bool()> stopped;  // asked every now and then
};

struct Annealed {
  Order order;
  Time makespan = Evaluator::hangs;
  std::int64_t evaluations = 0;
};

// The best order that was met. `start` keeps the memory limit; so does what comes of it.
[[nodiscard]] Annealed anneal(const Problem& problem, const Ops& ops, const Order& start, const Annealing& annealing,
                              Random& random);

}  // namespace dualpipe::detail::search
