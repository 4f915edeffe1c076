// 1F1B by hand: what simulate() and memory_of_ranks() find out, by loops that know the schedule, with one cost for all
// stages, latency and no more. What a general engine costs is told beside them.
//
// Both walk the ops of the Program, in its order, and take a stage per rank.
#pragma once

#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct ByHand {
  std::vector<RankTimes> times;      // by rank
  std::vector<RankMemory> memories;  // by rank
  std::vector<Span> ops;             // of the schedule's ops; only if asked for

  friend bool operator==(const ByHand&, const ByHand&) = default;
};

// As one writes it down at first: all arrivals in arrays, by rank and micro-batch; each rank runs as far as they allow,
// a few ops at most, in turn, until all have ended.
[[nodiscard]] ByHand one_f_one_b_in_turns(const Program& program, const Costs& costs, bool spans);

// With the insight that an op never waits for another of its diagonal but the one just worked out: after the warm-up it
// is F and B of each rank, from the last rank to the first, M times over. Nothing is stored but what the neighbours'
// last ops were.
[[nodiscard]] ByHand one_f_one_b_on_diagonals(const Program& program, const Costs& costs, bool spans);

}  // namespace dualpipe
