#include "dualpipe/sim/schedule/rewrite.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "dualpipe/sim/schedule/schedule_builder.h"

namespace dualpipe {
namespace {

// `rewrite(op, builder)` adds what becomes of each op, which is no longer half of a pair.
template <typename Rewrite>
Schedule rewritten(const Schedule& schedule, Rewrite rewrite) {
  ScheduleBuilder builder(schedule.placement, schedule.micro_batches, schedule.ops.size());
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    builder.go_to(rank);
    for (Op op : schedule.rank(rank)) {
      op.with_next = false;
      rewrite(op, builder);
    }
  }
  return builder.take(schedule.name);
}

}  // namespace

Schedule split_passes(const Schedule& schedule) {
  return rewritten(schedule, [](Op op, ScheduleBuilder& builder) {
    if (op.kind != Kind::backward) return builder.add(op);
    builder.input_gradient(op.stage, op.micro_batch);
    builder.weight_gradient(op.stage, op.micro_batch);
  });
}

Schedule forwards_of(const Schedule& schedule) {
  return rewritten(schedule, [](Op op, ScheduleBuilder& builder) {
    if (op.kind == Kind::forward) builder.add(op);
  });
}

Program renumber_ranks(const Program& program, std::span<const int> rank_of) {
  const Schedule& old = program.schedule;
  std::vector<int> old_of(rank_of.size());
  for (std::size_t rank = 0; rank < rank_of.size(); ++rank) {
    old_of[static_cast<std::size_t>(rank_of[rank])] = static_cast<int>(rank);
  }
  Program result;
  Schedule& schedule = result.schedule;
  schedule = {old.name, old.placement, old.micro_batches, {}, {0}};
  for (auto& rank : schedule.placement.rank_of) rank = static_cast<std::uint16_t>(rank_of[rank]);
  for (const int rank : old_of) {
    const auto ops = old.rank(rank);
    for (std::size_t position = 0; position <= ops.size(); ++position) {
      const auto slot = program.slot(rank, position);
      result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
      result.communication.insert(result.communication.end(), slot.begin(), slot.end());
    }
    schedule.ops.insert(schedule.ops.end(), ops.begin(), ops.end());
    schedule.rank_begin.push_back(schedule.ops.size());
  }
  result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
  return result;
}

Program without_reductions(Program program) {
  auto& weights = program.schedule.placement.weights_of;
  std::iota(weights.begin(), weights.end(), std::uint16_t{0});
  std::vector<Op> kept;
  std::size_t from = 0;
  for (std::uint32_t& slot : program.slot_begin) {
    for (; from < slot; ++from) {
      const Op op = program.communication[from];
      if (op.kind != Kind::reduce_gradients) kept.push_back(op);
    }
    slot = static_cast<std::uint32_t>(kept.size());
  }
  program.communication = std::move(kept);
  return program;
}

}  // namespace dualpipe
