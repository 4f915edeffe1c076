// What no order of a placement's ops can be faster than: formulas, no search.
//
// Along its chain the first micro-batch comes to a stage no earlier than its head, and after the last one has left it
// there is a tail to come. Between two ops A and B of a rank, A surely before B, the rank runs all its work but for
// what memory lets it do before A, and what it lets it leave for after B:
//
//   makespan >= head(A) + work of the rank - most work before A - most work after B + tail(B)
//
//   A  the rank's first op; F of a stage's first micro-batch; I of its first, or of one that memory lets start only
//      rounds later (each round a micro-batch goes from F to I, to make room for the next)
//   B  the rank's last op; F or I of a stage's last micro-batch
//
// And per rank by area: each micro-batch holds an activation for as long as it takes to the end of the chain and back,
// and all of that has to pass through a memory that fills, and drains, only as fast as F and I do.
//
// The span of one rank (zero-bubble papers) is bounded in the same way, by what happens on any rank between its first
// op and its last. With several chains only the heads, the work, the tails and the area are looked at.
//
// B counts as I and W, or as itself where that is shorter; F&B, where a stage's is known, lowers the work of a rank by
// what it can gain at most; where none is, schedules have no pairs. Speeds and unequal stages are in it. `links` and
// `stream` count with what a message takes on a link of its own. Proven optima that it was compared with:
// docs/search.md.
#pragma once

#include <cstdint>
#include <optional>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

struct LowerBounds {
  Time makespan = 0;
  Time span = 0;

  friend bool operator==(const LowerBounds&, const LowerBounds&) = default;
};

// Of all schedules of the placement, of so many micro-batches in each chain, whose ranks keep the limit. `costs`: of
// the placement's stages. Throws InputError: costs that do not fit, or with jitter, under which a run may be faster
// than any formula says.
[[nodiscard]] LowerBounds lower_bounds(const Placement& placement, std::int64_t micro_batches, const Costs& costs,
                                       const std::optional<MemoryLimit>& limit = std::nullopt);

}  // namespace dualpipe
