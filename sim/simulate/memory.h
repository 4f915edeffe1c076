// What a rank holds while it runs its part of a Program. It depends on the order alone; times only say when.
//
//   activation       from the start of its F to the end of its B or I; in an F&B pair the forward's is held already
//                    while the backward's still is
//   receive buffer   from the slot of its RECV: an activation's until the forward starts (the buffer then becomes a
//                    part of that activation), a gradient's until the op that reads it ends
//   local result     what a stage makes for another stage of its rank: from the end of the op that makes it, then
//                    like a receive buffer
//   workspace        while an op runs
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct RankMemory {
  int parameters = 0;                         // stages whose parameters it holds
  Bytes resident = 0;                         // parameters, gradients, optimizer state: part of the peak
  int peak_activations = 0;                   // forwards whose B or I has not ended, over all stages of the rank
  std::size_t peak_activations_position = 0;  // the op that first reaches it
  Bytes peak = 0;                             // bytes
  std::size_t peak_position = 0;              // of the op in which, or in the slot before which, it is first reached

  friend bool operator==(const RankMemory&, const RankMemory&) = default;
};

// All throw InputError where the costs do not fit the program, or the bytes could overflow.
[[nodiscard]] RankMemory rank_memory(const Program& program, const Costs& costs, int rank);
// Of every rank; quicker than one by one.
[[nodiscard]] std::vector<RankMemory> memory_of_ranks(const Program& program, const Costs& costs);

// What a rank holds at its op `position`, in order: an F for each activation, an I for each stash whose W is to come.
[[nodiscard]] std::vector<Op> held_at(const Program& program, int rank, std::size_t position);

// Memory over time, a point wherever it changes.
struct MemoryPoint {
  Time time;
  Bytes bytes;
  int activations;
};

// For code that asks for one rank after another: the tables that all ranks share are made once. The program and the
// costs must outlive it. Its functions throw nothing.
class RankMemories {
 public:
  // Throws InputError where the costs do not fit the program, or the bytes could overflow.
  RankMemories(const Program& program, const Costs& costs);
  ~RankMemories();

  [[nodiscard]] RankMemory of(int rank) const;
  // The timeline must have recorded spans.
  [[nodiscard]] std::vector<MemoryPoint> over_time(const Timeline& timeline, int rank) const;

 private:
  class Walk;
  std::unique_ptr<const Walk> walk_;
};

// The same for one rank.
[[nodiscard]] std::vector<MemoryPoint> memory_over_time(const Program& program, const Costs& costs,
                                                        const Timeline& timeline, int rank);

}  // namespace dualpipe
