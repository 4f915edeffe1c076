// The rules of a schedule, and of a program that was read from a file. All violations are listed at once, none twice;
// what is named is what is wrong, and not what would be right but for that.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

enum class Rule : std::uint8_t {
  no_such_stage,            // stage or micro-batch outside of the schedule
  wrong_rank,               // the stage is held by another rank
  doubled,                  // the op ran already
  missing,                  // the op runs nowhere
  backward_before_forward,  // B or I before F of the same stage and micro-batch, W before I
  split_and_full,           // B, and also I or W, for one stage and micro-batch
  backward_alone,           // a backward in a schedule that else has hardly any
  stray_micro_batch,        // a micro-batch too many: it occurs in few of its ops
  absent_micro_batches,     // some numbers between 0 and that of the last micro-batch, or the schedule's own count
  stray_stage,              // a stage too many: few micro-batches run through it
  absent_stage,             // its rank runs nothing of it
  chain_order,              // two neighbours of a chain on one rank, in the wrong order
  pair,                     // an F&B pair that is not one forward and one full backward of two micro-batches
  not_compute,              // communication among the compute ops
  message_unneeded,         // its stage has no neighbour on another rank to exchange it with
  message_alone,            // a message in a program that else has hardly any
  message_missing,          // an op whose input is never received, or whose output is never sent
  message_doubled,
  message_misplaced,  // a send before its op, a receive after it, anything inside a pair
};

struct Violation {
  Rule rule;
  int rank;  // where it was seen; for a missing op, the rank that should run it
  // Of the op among the rank's ops, or of the slot that a message stands in. Where an op is missing: the number of ops.
  // Where a message is missing: the first slot that the send could stand in, or the last one that the receive, or the
  // reduction, could stand in. Of strays and absent micro-batches: how often, or how many.
  std::size_t position;
  Op op;
  // The op it clashes with (a pair's partner, a neighbour in the chain); the last of a stray's ops, or of absent
  // micro-batches; else the same as `op`.
  Op other;

  friend bool operator==(const Violation&, const Violation&) = default;
};

// "rank 2, op 5, 3B7: runs before 3F7"
[[nodiscard]] std::string to_text(const Violation& violation, const Placement& placement);

// At most a million are listed. Throws InputError for what a reader never makes: a placement that check() refuses, or
// ops and slots that are not divided among the ranks.
[[nodiscard]] std::vector<Violation> validate(const Schedule& schedule);
// The violations of the schedule; if there are none, those of the communication.
[[nodiscard]] std::vector<Violation> validate(const Program& program);

}  // namespace dualpipe
