// What a schedule is sought for, as flat numbers: where the stages are, what each op takes, how long its result
// travels, and what a rank may hold. Private to sim.
//
// Times are those of simulate(), with the launch overhead counted as a part of each op and taken off the way of its
// result; so a makespan found with them is `launch` too long.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::search {

struct ProblemStage {
  int rank = 0;
  bool begins_chain = false;
  bool ends_chain = false;
  Time forward = 0;
  Time input_gradient = 0;
  Time weight_gradient = 0;
  Time backward = 0;               // I and W in one
  std::optional<Time> overlapped;  // F&B, the forward of which is this stage's; unset: F + B, no gain
  Time to_next = 0;                // from the end of its F until that of the next stage may start; 0 on the same rank
  Time to_previous = 0;
  Bytes activation = 0;  // held from F to I, and from I to W
  Bytes stash = 0;
};

struct Problem {
  Placement placement;
  std::int64_t micro_batches = 0;  // of each chain
  std::vector<ProblemStage> stages;
  std::vector<std::vector<int>> stages_on;  // by rank, ascending
  std::vector<Bytes> room;                  // by rank, for activations and stashes; all of them where there is no limit
  Time launch = 0;
  bool links = false;      // each directed link carries one message at a time
  bool has_pairs = false;  // F&B is shorter than F + B somewhere
  bool releases_early = false;

  [[nodiscard]] Time pair_duration(int forward_stage, int backward_stage) const;
  [[nodiscard]] int ranks() const { return placement.ranks; }
  [[nodiscard]] bool joins_backwards() const;  // whether B may be shorter than I and W
};

// `costs`: of the placement's stages. Without a limit there is room for all. In bytes the room is what is left of the
// limit beside what a rank holds all the time and the least workspace that it needs; so every schedule that keeps the
// limit keeps this. Throws InputError where the costs do not fit.
[[nodiscard]] Problem problem_of(const Placement& placement, std::int64_t micro_batches, const Costs& costs,
                                 const std::optional<MemoryLimit>& limit);

// lower_bounds() of a problem.
struct Bound {
  Time makespan = 0;
  Time span = 0;
};
[[nodiscard]] Bound bound_of(const Problem& problem);

}  // namespace dualpipe::detail::search
