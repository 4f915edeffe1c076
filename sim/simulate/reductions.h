// When the gradients of shared weights are reduced. Private to sim/simulate.
//
// Every rank runs its REDUCE_GRADs in order, on a lane beside its ops. A reduction starts when all ranks that hold the
// weights have come to theirs. A rank that holds several stages with the same weights takes part once, at the last one.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::simulate {

struct Reduction {
  int rank;
  std::size_t position;  // of its slot
  std::uint32_t index;   // of communication
  Time reached;
};

struct Reduced {
  std::vector<std::pair<std::uint32_t, Span>> spans;  // of communication
  Time last_end = 0;
  std::optional<Deadlock> deadlock;
};

// `reductions`: of every rank, in its order.
[[nodiscard]] Reduced reduce(const Program& program, const Costs& costs,
                             const std::vector<std::vector<Reduction>>& reductions);

}  // namespace dualpipe::detail::simulate
