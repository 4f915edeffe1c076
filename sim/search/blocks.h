// Cyclic schedules: every rank repeats the same order of its ops with the same period, one micro-batch later (modulo
// scheduling; Tessel, HPCA 2024, calls what is repeated a repetend). The steady state of a good schedule is one.
//
// A rank's ops have phases on a circle as long as the period. Along the chain each op takes the first time of its phase
// at which its input is there; so the phases alone say how long a micro-batch takes through the chain, and how many are
// in flight. Phases are annealed until that is as short as it gets and memory suffices. Private to sim/search.
#pragma once

#include <optional>
#include <vector>

#include "dualpipe/sim/search/problem.h"
#include "dualpipe/sim/search/random.h"

namespace dualpipe::detail::search {

struct Block {
  Time period = 0;
  std::vector<Time> start;  // by 3 * stage + pass: of the first micro-batch's op
  Time length = 0;          // until its last I ends
  Bytes overflow = 0;       // what ranks hold too much, all together
};

// One chain. `stretch`: the period over the load of the rank that has most.
[[nodiscard]] Block anneal_block(const Problem& problem, double stretch, int moves, Random& random);

}  // namespace dualpipe::detail::search
