// What a rank holds while it runs its part of a Program. The order alone decides it, times only say when.
//
// An op's F holds its activation from its start. Its B, or I, releases it at its end; an F&B pair holds its forward
// before its backward is released. A receive buffer is held from the slot of its RECV: a forward's until the forward
// starts (the buffer is then part of the activation), a gradient's until the end of the op that reads it. What one
// stage makes for another of its rank is held likewise, from the end of the op that makes it. While an op runs it holds
// its workspace besides.
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
  std::size_t peak_position = 0;              // the op during which, or in the slot before which, it is first reached

  friend bool operator==(const RankMemory&, const RankMemory&) = default;
};

// All throw InputError where the costs do not fit the program, or the bytes could overflow.
[[nodiscard]] RankMemory rank_memory(const Program& program, const Costs& costs, int rank);
// Of every rank; quicker than one by one.
[[nodiscard]] std::vector<RankMemory> memory_of_ranks(const Program& program, const Costs& costs);

// What is held at a rank's op `position`: one forward F, or I whose W is still to come, per entry, in order.
[[nodiscard]] std::vector<Op> held_at(const Program& program, int rank, std::size_t position);

// Memory over time, a point wherever it changes.
struct MemoryPoint {
  Time time;
  Bytes bytes;
  int activations;
};

// For those who ask for rank after rank: what all ranks need to know is made once. The program and the costs must
// outlive it. Its functions throw nothing.
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

// The same of one rank.
[[nodiscard]] std::vector<MemoryPoint> memory_over_time(const Program& program, const Costs& costs,
                                                        const Timeline& timeline, int rank);

}  // namespace dualpipe
