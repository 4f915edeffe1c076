// How much work memory lets a rank do, or leave: the integer programs of the bounds. Private to sim/search.
#pragma once

#include <cstdint>
#include <vector>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::search {

// Micro-batches of the rank's stages, in chain order: counts[0] >= counts[1] >= … >= least, at most `most`. The stage i
// gives work[i] for each and takes bytes[i] of the room. What is left of the room may hold stashes: they give
// `stash_work` per `stash_bytes`, no more than `stash_work_most`; without bytes all of it.
struct MostWork {
  std::vector<Time> work = {};
  std::vector<Bytes> bytes = {};
  std::int64_t least = 1;
  std::int64_t most = 1;
  Bytes room = 0;
  Time stash_work = 0;
  Bytes stash_bytes = 0;
  Time stash_work_most = 0;
};

// The most work, or somewhat more: exact for one stage, and for two with up to 16384 micro-batches, otherwise as if
// micro-batches could be divided. Negative where not even the least fits: then there is no schedule.
[[nodiscard]] Time most_work(const MostWork& program);

}  // namespace dualpipe::detail::search
