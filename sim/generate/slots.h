// A rank's passes by the slot of time in which each would run if all took one: for schedules that are published as such
// a grid. Only the order is kept. Private to sim.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dualpipe/sim/schedule/schedule_builder.h"

namespace dualpipe::detail::generate {

// How the micro-batches of a chain follow each other: one every 2 slots, and after each `size` of them a new unit,
// which begins `period` slots after the one before.
struct Units {
  std::int64_t micro_batches;
  std::int64_t size;
  std::int64_t period;

  // The slot in which the last unit begins.
  [[nodiscard]] std::int64_t last_begin() const { return (micro_batches - 1) / size * period; }
};

// At most one forward and one backward in a slot.
class Slots {
 public:
  // Empty, with slots 0 to count-1.
  void reset(std::int64_t count) { ops_.assign(2 * static_cast<std::size_t>(count), empty); }

  // All passes of a stage, whose first micro-batch runs in the slots `forward` and `backward`.
  void add_stage(int stage, std::int64_t forward, std::int64_t backward, const Units& units) {
    std::int64_t begin = 0;
    for (std::int64_t first = 0; first < units.micro_batches; first += units.size, begin += units.period) {
      const std::int64_t end = std::min(first + units.size, units.micro_batches);
      for (std::int64_t m = first, slot = begin; m < end; ++m, slot += 2) {
        put(2 * (slot + forward) + 1, Kind::forward, stage, m);
        // Comes before the slot's forward, since it frees the memory that the forward takes.
        put(2 * (slot + backward), Kind::backward, stage, m);
      }
    }
  }

  // To the rank at which the builder is.
  void add_to(ScheduleBuilder& builder) const {
    for (const Op op : ops_) {
      if (op != empty) builder.add(op);
    }
  }

 private:
  static constexpr Op empty{0, 0, Kind::unshard, false};

  void put(std::int64_t at, Kind kind, int stage, std::int64_t micro_batch) {
    ops_[static_cast<std::size_t>(at)] =
        Op{static_cast<std::uint32_t>(micro_batch), static_cast<std::uint16_t>(stage), kind, false};
  }

  std::vector<Op> ops_;
};

}  // namespace dualpipe::detail::generate
