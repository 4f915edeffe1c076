// The part of a program that was done.
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "dualpipe/exec/train/train.h"

namespace dualpipe {

PartialRun reached(const Program& program, std::span<const RankRecord> records) {
  const Schedule& whole = program.schedule;
  PartialRun partial;
  Schedule& schedule = partial.program.schedule;
  schedule.name = whole.name;
  schedule.placement = whole.placement;
  schedule.micro_batches = whole.micro_batches;
  schedule.rank_begin = {0};
  for (int rank = 0; rank < whole.ranks(); ++rank) {
    RankRecord record = records[static_cast<std::size_t>(rank)];
    const auto ops = whole.rank(rank).first(record.done);
    schedule.ops.insert(schedule.ops.end(), ops.begin(), ops.end());
    schedule.rank_begin.push_back(schedule.ops.size());
    for (std::size_t position = 0; position <= record.done; ++position) {
      partial.program.slot_begin.push_back(static_cast<std::uint32_t>(partial.program.communication.size()));
      const auto slot = program.slot(rank, position);
      partial.program.communication.insert(partial.program.communication.end(), slot.begin(), slot.end());
    }
    record.ops.resize(record.done);
    record.waited.resize(record.done);
    if (!record.memory.empty()) record.memory.resize(record.done);
    const std::size_t slots = program.slot_index(rank, record.done) + 1;
    record.communication.resize(program.slot_begin[slots] - program.slot_begin[program.slot_index(rank, 0)]);
    partial.records.push_back(std::move(record));
  }
  partial.program.slot_begin.push_back(static_cast<std::uint32_t>(partial.program.communication.size()));
  return partial;
}

}  // namespace dualpipe
