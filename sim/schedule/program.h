// A Schedule together with its communication: what the simulator times and the executor replays, op for op.
//
// Communication stands in slots. A rank with n ops has n + 1 slots, one before each op and one after the last:
//
//     slot 0   op 0   slot 1   op 1   …   op n-1   slot n
//
// The communication of a slot is issued, in order, as soon as the op before it has ended. Messages that are joined by
// `with_next` are one batch (an NCCL group). The slot between the two ops of an F&B pair is always empty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

struct Program {
  Schedule schedule;
  std::vector<Op> communication;          // rank after rank, slot after slot
  std::vector<std::uint32_t> slot_begin;  // of communication; slots of all ranks, and the end

  friend bool operator==(const Program&, const Program&) = default;

  // The number of a rank's slot `position` among all slots.
  [[nodiscard]] std::size_t slot_index(int rank, std::size_t position) const {
    return schedule.rank_begin[static_cast<std::size_t>(rank)] + static_cast<std::size_t>(rank) + position;
  }
  [[nodiscard]] std::span<const Op> slot(int rank, std::size_t position) const {
    const std::size_t index = slot_index(rank, position);
    return std::span(communication).subspan(slot_begin[index], slot_begin[index + 1] - slot_begin[index]);
  }
};

// Of no ops: for what costs say of a placement alone.
[[nodiscard]] inline Program empty_program(const Placement& placement, std::int64_t micro_batches) {
  Program program;
  program.schedule.placement = placement;
  program.schedule.micro_batches = static_cast<std::uint32_t>(micro_batches);
  program.schedule.rank_begin.resize(static_cast<std::size_t>(placement.ranks) + 1);
  return program;
}

}  // namespace dualpipe
