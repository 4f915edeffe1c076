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

void StepLog::begin(std::size_t position, std::span<const Op> unit, const Mark& ready) {
  ready_[position] = ready;
  activations_ += static_cast<int>(std::ranges::count(unit, Kind::forward, &Op::kind));
  record_.peak_activations = std::max(record_.peak_activations, activations_);
  if (meter_ == nullptr) return;
  record_.memory[position].before = held_memory();
  meter_->take_peak();
}

void StepLog::end(std::size_t position, std::span<const Op> unit, const Mark& start, const Mark& end, Bytes output) {
  if (meter_ != nullptr) {
    OpMemory& memory = record_.memory[position];
    memory.output = output;
    memory.peak = meter_->take_peak();
    memory.after = held_memory();
  }
  for (std::size_t i = 0; i < unit.size(); ++i) ops_[position + i] = {start, end};
  if (part_notes_) part_notes_->assign(unit);
  const auto ends_one = [&](Op op) { return evaluates_ || is_backward_half(op.kind); };
  activations_ -= static_cast<int>(std::ranges::count_if(unit, ends_one));
}

void StepLog::received(const Op& message, const Mark& posted, const Mark& arrived,
                       const std::optional<Mark>& copy_begun) {
  intervals_[index_of(message)] = {posted, arrived};
  if (part_notes_ && copy_begun) copied_.push_back({&message, {*copy_begun, arrived}});
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
