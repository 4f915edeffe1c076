// The parts that the stages of a rank note while it runs. Private to exec/replay.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/rank_part.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::replay {

// Where the stages of a rank note their parts, while it lives.
class PartNotes {
 public:
  explicit PartNotes(std::span<const HeldStage> stages) : stages_(stages) { set(&log_); }
  ~PartNotes() { set(nullptr); }
  PartNotes(const PartNotes&) = delete;
  PartNotes& operator=(const PartNotes&) = delete;

  // What was noted since the last unit is of this one, whose ops have run.
  void assign(std::span<const Op> unit) {
    for (std::size_t i = ops_.size(); i < log_.size(); ++i) {
      const bool is_second = unit.size() == 2 && (unit[0].kind == Kind::forward) != log_[i].is_forward;
      ops_.push_back(unit[is_second ? 1 : 0]);
    }
  }

  [[nodiscard]] std::vector<PartSpan> read(const Device& device) const {
    std::vector<PartSpan> parts;
    for (std::size_t i = 0; i < ops_.size(); ++i) {
      const NotedPart& part = log_[i];
      const auto lane = part.stream == Stream::Kind::exchange ? PartSpan::Lane::exchange : PartSpan::Lane::compute;
      parts.push_back({ops_[i], lane, part.name, {device.time_of(part.start), device.time_of(part.end)}});
      parts.back().op.with_next = false;
    }
    return parts;
  }

 private:
  void set(PartLog* log) {
    for (const HeldStage& each : stages_) {
      if (each.stage != nullptr) each.stage->note_parts(log);
    }
  }

  std::span<const HeldStage> stages_;
  PartLog log_;
  std::vector<Op> ops_;  // that the parts are of
};

}  // namespace dualpipe::detail::replay
