// How a model is cut so that the most loaded rank has the least load. Private to sim/costs.
#pragma once

#include <span>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::costs {

// The stages that a rank holds, as places in their chains, in order: one that it holds in two chains is there twice.
using RankStages = std::vector<int>;

// Of the ranks, by their first stages; only one of several that hold the same. The chains have the same length.
[[nodiscard]] std::vector<RankStages> stages_of_ranks(const Placement& placement);

// How many parts each of the stages of a chain gets: runs of at least one. `loads`: of the parts, at least as many as
// stages.
//
// Bisects on the load that no rank may exceed. Whether there is a cut within it is found rank by rank: the stages of a
// rank are given their bounds, and what is left for the other ranks depends on nothing but the bounds that they share
// with those done: two at most where ranks hold single stages or the two of a V. Where that has failed once it is not
// tried again, so the search is a dynamic program.
[[nodiscard]] std::vector<int> parts_of_stages(std::span<const Time> loads, std::span<const RankStages> ranks,
                                               int stages);

// The times that are added up to a load; each is divided by itself.
using LoadTimes = std::vector<Time>;

// How many stages each part is divided into, at least one. There are more stages than parts.
//
// Depth first over the parts, and back where a rank has no less than in the best way so far.
[[nodiscard]] std::vector<int> stages_of_parts(std::span<const LoadTimes> parts, std::span<const RankStages> ranks,
                                               int stages);

// What the `index`th of `count` equal stages of a part has of an amount: all together have all of it.
[[nodiscard]] std::int64_t share_of(std::int64_t amount, int index, int count);

}  // namespace dualpipe::detail::costs
