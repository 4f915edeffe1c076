#include "dualpipe/sim/schedule/rewrite.h"

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

}  // namespace dualpipe
