#include "dualpipe/exec/replay/step_log.h"

#include <algorithm>

namespace dualpipe::detail::replay {

StepLog::StepLog(RankRecord& record, const ReplayOptions& options, std::span<const Op> messages,
                 std::span<const HeldStage> stages, MemoryMeter* meter)
    : record_(record),
      device_(*options.device),
      messages_(messages),
      meter_(meter),
      ops_(record.ops.size()),
      ready_(record.ops.size()),
      intervals_(messages.size()),
      evaluates_(options.forward_only) {
  if (options.note_parts) part_notes_.emplace(stages);
}

void StepLog::read() {
  for (std::size_t i = 0; i < ops_.size(); ++i) {
    record_.ops[i] = span_of(ops_[i]);
    if (ready_[i]) record_.waited[i] = record_.ops[i].start - device_.time_of(*ready_[i]);
  }
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    Span& span = record_.communication[i] = span_of(intervals_[i]);
    span.start = std::min(span.start, span.end);  // a message may come before its receive is posted
  }
  for (const at::Tensor& loss : losses_) record_.losses.push_back(loss.item<double>());
  if (!part_notes_) return;
  record_.parts = part_notes_->read(device_);
  for (const auto& [message, interval] : copied_) {
    record_.parts.push_back({*message, PartSpan::Lane::copy, "copy", span_of(interval)});
    record_.parts.back().op.with_next = false;
  }
}

Span StepLog::span_of(const std::optional<Interval>& interval) const {
  if (!interval) return {};
  return {device_.time_of(interval->start), device_.time_of(interval->end)};
}

}  // namespace dualpipe::detail::replay
