// A simulator written another way, to check the one in sim/ by: slow, short, and straight from what costs.h, program.h
// and memory.h say. It shares their types and nothing else.
//
// `latency` is a longest path over the ops of the Schedule; the messages of the Program are not even looked at. `links`
// and `stream` are played out in order of time: whatever can start at the present moment starts, then the clock goes on
// to the next moment at which something ends.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::oracle {

struct Rank {
  Time first_start = 0;
  Time last_end = 0;
  Time busy = 0;
};

struct Result {
  std::vector<Rank> ranks;
  Time makespan = 0;
  Time span = 0;               // the longest of any one rank
  Time reduced = 0;            // when the last reduction of shared gradients ended
  std::vector<Span> ops;       // of Schedule::ops, in order; both ops of a pair have the pair's
  std::vector<Span> messages;  // of Program::communication; of sends and receives only
};

// None: the program hangs. Jitter is left out.
[[nodiscard]] std::optional<Result> simulate(const Program& program, const Costs& costs);

struct Memory {
  int peak_activations = 0;
  std::size_t peak_activations_position = 0;
  Bytes peak = 0;
  std::size_t peak_position = 0;
};
[[nodiscard]] Memory memory(const Program& program, const Costs& costs, int rank);

}  // namespace dualpipe::oracle
