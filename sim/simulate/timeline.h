// What happened when a Program ran, predicted or measured. Every report reads this and nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// The longest run, 73 years. simulate() refuses costs by which a run could take longer, and read_chrome_trace() refuses
// traces with later times. So code that reads a Timeline may add three of its times, or subtract one from another,
// without a check: 3 * 2^61 < 2^63. Products of times need a check, or 128 bits.
inline constexpr Time run_time_max = Time{1} << 61U;

struct Span {
  Time start = 0;
  Time end = 0;

  friend bool operator==(const Span&, const Span&) = default;
};

// One rank. Computation only; communication is on lanes of its own.
struct RankTimes {
  Time first_start = 0;
  Time last_end = 0;
  Time busy = 0;  // the sum of the durations of its ops

  friend bool operator==(const RankTimes&, const RankTimes&) = default;

  [[nodiscard]] Time span() const { return last_end - first_start; }
};

// A piece of an op, or the copy of a message, that ran beside others on a lane of its own.
struct PartSpan {
  enum class Lane : std::uint8_t {
    compute,   // of the op's stage
    exchange,  // of the rank: what the shards of a stage get of each other within an op
    copy,      // of the rank: a message is copied into memory of this rank
  };

  Op op;                      // the op that it is a part of, or the receive that was copied. `with_next` is off
  Lane lane = Lane::compute;  // of the rank that has the op
  std::string name;           // "dispatch"
  Span span;

  friend bool operator==(const PartSpan&, const PartSpan&) = default;
};

struct Timeline {
  std::vector<RankTimes> ranks;
  Time reduced = 0;  // when the last REDUCE_GRAD ended; 0 without any. Not part of the makespan

  // Only where they are recorded; else empty.
  std::vector<Span> ops;            // of Program::schedule.ops, in the same order; both ops of a pair have the pair's
  std::vector<Span> communication;  // of Program::communication, in the same order. A message's two ends have the same
                                    // span, from the start of the transfer to its arrival
  std::vector<PartSpan> parts;      // by rank; those of a lane in the order in which they ran

  friend bool operator==(const Timeline&, const Timeline&) = default;

  // End of the last op minus start of the first, over all ranks.
  [[nodiscard]] Time makespan() const;
  // The longest first-op-to-last-op span of any one rank: the zero-bubble papers' cost.
  [[nodiscard]] Time span() const;
  // Makespan minus the rank's busy time: DeepSeek's bubble of a rank.
  [[nodiscard]] Time idle(int rank) const;

  // The share of idle time, over all ranks: 1 - busy / (ranks * makespan), and the same with span() as the cost. With
  // equal work on every rank the latter is the zero-bubble papers' (cost - m(F + B)) / cost.
  [[nodiscard]] double bubble_rate_makespan() const;
  [[nodiscard]] double bubble_rate_span() const;
};

}  // namespace dualpipe
