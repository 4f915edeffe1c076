// Why ranks are idle: every nanosecond of it has a cause, and the run a critical path.
//
// A rank is idle in windows: before its first op, between two, and after its last. From the op that ends a window, or
// for the last one from the end of the run, we walk back along what each event waited for last, to where the window
// begins. What the walk passes through are the causes; so segments tile each window, and all together are as long as
// all ranks are idle: the sum of makespan - busy, to the nanosecond.
//
//   rank 0  F0 F1 F2 F3 .....window.......... B0       F2 elsewhere, then B0 elsewhere, and the messages between them
//   rank 1     F0 F1 F2 ~ .                ~/
//   rank 2        F0 B0 F1 B1 ..
//
// (Scalasca attributes delays in the same way: Böhme, Geimer, Wolf, Arnold, Identifying the root causes of wait states,
// ICPP 2010.)
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What a rank waited for.
enum class Cause : std::uint8_t {
  forward,          // an op of this pass, on another rank, whose result it or an op before it needs
  backward,         //
  input_gradient,   //
  weight_gradient,  //
  pair,             //
  straggler,        // such an op took longer than the median of its stage: the time above that
  order,            // an op that it needs stood in its rank's order behind another one, which ran
  transfer,         // a message was on its way
  link_busy,        // a message waited for another one to leave the link
  head_of_line,     // a message waited for others of its batch, or for a batch before it on its rank's stream
  launch,           // the time between the end of an op and the start of the next one that could run
  drain,            // the rank has no more ops, and the last of others run
  warm_up           // the rank begins late, and nothing that was recorded says why
};
inline constexpr std::array<std::string_view, 13> cause_names = {
    "F elsewhere", "B elsewhere", "I elsewhere",  "W elsewhere", "F&B elsewhere", "straggler", "order",
    "transfer",    "link busy",   "head of line", "launch",      "drain",         "warm-up"};
[[nodiscard]] constexpr std::string_view name(Cause cause) { return cause_names[static_cast<std::size_t>(cause)]; }

// What the idle rank could have done meanwhile.
enum class Readiness : std::uint8_t {
  nothing,     // none of its later ops had its inputs
  over_limit,  // some had, but would have taken the rank over the memory limit
  later        // some had: they stand later in its order
};
inline constexpr std::array<std::string_view, 3> readiness_names = {"nothing was ready", "ready, over the memory limit",
                                                                    "ready, later in the order"};
[[nodiscard]] constexpr std::string_view name(Readiness readiness) {
  return readiness_names[static_cast<std::size_t>(readiness)];
}

// A part of a window.
struct IdleSegment {
  int rank = 0;  // that is idle
  Span span;
  Cause cause = Cause::forward;
  Readiness readiness = Readiness::nothing;
  // What ran or was on its way: the first op of what ran, or the receive of the message. Of `launch` and `warm_up` the
  // op that started late, of `drain` the last op of the run.
  Op op;
  int from = 0;  // the rank that ran it, or sent the message

  friend bool operator==(const IdleSegment&, const IdleSegment&) = default;
};

// A piece of the critical path.
struct PathStep {
  enum class Kind : std::uint8_t { op, transfer, launch };
  Kind kind = Kind::op;
  Op op;         // the first of the unit that runs, or the receive of the message, or the op that is launched
  int rank = 0;  // that runs it, or sends it
  Span span;

  friend bool operator==(const PathStep&, const PathStep&) = default;
};

struct Causes {
  std::array<Time, cause_names.size()> time{};

  friend bool operator==(const Causes&, const Causes&) = default;

  [[nodiscard]] Time of(Cause cause) const { return time[static_cast<std::size_t>(cause)]; }
  [[nodiscard]] Time total() const;
  Causes& operator+=(const Causes& other);
};

struct Explanation {
  std::vector<IdleSegment> segments;  // by rank, then time
  std::vector<PathStep> path;         // from the start of the run to its end, without a gap
  std::vector<Time> slack;            // of Schedule::ops: how much later each could start, all else in its order
  Time ideal = 0;                     // no order of the same ops on the same ranks is shorter

  friend bool operator==(const Explanation&, const Explanation&) = default;
};

// The idle time of each rank.
[[nodiscard]] std::vector<Causes> causes_by_rank(const Explanation& explanation, int ranks);

// The timeline must be what simulate() makes of the program and the costs, with Record::spans. Throws InputError where
// the costs do not fit the program. Without a limit nothing is over it.
[[nodiscard]] Explanation explain(const Program& program, const Costs& costs, const Timeline& timeline,
                                  const std::optional<MemoryLimit>& limit = std::nullopt);

// Of a run that was measured, by the spans of its ops: an op waited for the last of its inputs and of its rank's op
// before it; what then went by until it started was a message on its way, or launch. Where the timeline has the spans
// of messages, an input was there when its message came. The order must be one that can run (lower_checked()).
[[nodiscard]] Explanation explain_measured(const Program& program, const Timeline& timeline);

}  // namespace dualpipe
