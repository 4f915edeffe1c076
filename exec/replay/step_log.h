// What a rank notes while it runs: events of its device, whose times are known when the device has finished. Private to
// exec/replay.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/replay/part_notes.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"

namespace dualpipe::detail::replay {

// The log of one step, which goes into the record of a rank. What is called for each op is inline: the replay takes a
// fraction of a microsecond per op.
class StepLog {
 public:
  // `messages`: of the rank, whose places in there tell them apart. `meter`: null: memory is not measured.
  StepLog(RankRecord& record, const ReplayOptions& options, std::span<const Op> messages,
          std::span<const HeldStage> stages, MemoryMeter* meter);

  // An op, or the two of a pair, at its position: when it could have begun, and what is held then.
  void begin(std::size_t position, std::span<const Op> unit, const Event& ready) {
    ready_[position] = ready;
    activations_ += static_cast<int>(std::ranges::count(unit, Kind::forward, &Op::kind));
    record_.peak_activations = std::max(record_.peak_activations, activations_);
    if (meter_ == nullptr) return;
    record_.memory[position].before = held_memory();
    meter_->take_peak();
  }
  // It ran from one event to the other. `output`: bytes of what its F made.
  void end(std::size_t position, std::span<const Op> unit, const Event& start, const Event& end, Bytes output) {
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

  // A send, a reduction: while it was handed over.
  void message(const Op& message, const Event& start, const Event& end) {
    intervals_[index_of(message)] = {start, end};
  }
  // A receive: from its post until it was there. `copy_begun`: where a copy of it is noted.
  void received(const Op& message, const Event& posted, const Event& arrived, const std::optional<Event>& copy_begun) {
    intervals_[index_of(message)] = {posted, arrived};
    if (part_notes_ && copy_begun) copied_.push_back({&message, {*copy_begun, arrived}});
  }

  void loss(at::Tensor loss) { losses_.push_back(std::move(loss)); }

  // When the device has finished: writes what was not known before, times and losses.
  void read();

 private:
  // From one event to another. Where it is not set nothing happened.
  struct Interval {
    Event start;
    Event end;
  };
  // The copy of a message.
  struct Copied {
    const Op* message = nullptr;
    Interval interval;
  };

  [[nodiscard]] std::size_t index_of(const Op& message) const {
    return static_cast<std::size_t>(&message - messages_.data());
  }
  [[nodiscard]] Span span_of(const std::optional<Interval>& interval) const;
  // Without what only waits for the device.
  [[nodiscard]] Bytes held_memory() const { return meter_->held() - device_.pending_bytes(); }

  RankRecord& record_;
  const Device& device_;
  const std::span<const Op> messages_;
  MemoryMeter* const meter_;
  std::vector<std::optional<Interval>> ops_;
  std::vector<std::optional<Event>> ready_;         // before an op, or pair: the end of what was before
  std::vector<std::optional<Interval>> intervals_;  // of messages
  std::optional<PartNotes> part_notes_;             // where they are wanted
  std::vector<Copied> copied_;
  std::vector<at::Tensor> losses_;
  const bool evaluates_;
  int activations_ = 0;  // held from the start of an F to the end of its B or I; for evaluation, while F runs
};

}  // namespace dualpipe::detail::replay
