// A table made of a Program and its Costs: how long each op takes, and through which mailboxes its input comes and its
// result goes. Private to sim.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/schedule/window.h"

namespace dualpipe::detail::simulate {

// The messages to one stage: every stage has a mailbox for activations (the inputs of its F), and one for gradients
// (those of its B or I).
struct Mailbox {
  static constexpr std::uint32_t nothing = std::numeric_limits<std::uint32_t>::max();

  detail::schedule::Window<Time> arrivals;
  std::uint32_t awaited = nothing;  // the micro-batch that the rank sleeps for
  std::uint16_t rank = 0;           // of the stage
  Time transfer = 0;                // how long a message travels
};

struct Task {
  Time duration = 0;
  Mailbox* in = nullptr;   // null: the op needs nothing from another rank
  Mailbox* out = nullptr;  // null: no other rank needs its result
};

class Tasks {
 public:
  // Throws InputError if the costs do not fit the program, or the simulated time could overflow.
  Tasks(const Program& program, const Costs& costs);

  Tasks(const Tasks&) = delete;  // tasks point into the boxes
  Tasks& operator=(const Tasks&) = delete;

  [[nodiscard]] const Task& of(Op op) const { return of_stage_[op.stage].of_kind[static_cast<std::size_t>(op.kind)]; }
  [[nodiscard]] Time pair_duration(Op forward, Op backward) const {
    const StageTasks& stage = of_stage_[forward.stage];
    return stage.overlaps ? stage.overlapped : of(forward).duration + of(backward).duration;
  }
  // The mailbox that a send or a receive goes through: the receiving stage's.
  [[nodiscard]] Mailbox& box_of(Op message) {
    return is_send(message.kind) ? *of(op_of(message)).out : *of(op_of(message)).in;
  }
  [[nodiscard]] std::size_t index_of(const Mailbox& box) const {
    return static_cast<std::size_t>(&box - boxes_.data());
  }
  [[nodiscard]] std::size_t box_count() const { return boxes_.size(); }

  // How long a reduction of these stages' gradients takes: a ring over n ranks moves 2(n-1)/n of them through each.
  [[nodiscard]] static Time reduction_time(const Costs& costs, int stage, std::size_t ranks);

 private:
  struct StageTasks {
    std::array<Task, 4> of_kind;  // F B I W
    Time overlapped = 0;
    bool overlaps = false;
  };

  void check_total_time(const Program& program, const Costs& costs) const;
  [[nodiscard]] double longest_time(const Program& program, const Costs& costs) const;

  std::vector<Mailbox> boxes_;
  std::vector<StageTasks> of_stage_;
};

// Scales the duration of an op by a random factor, which depends on the seed and on the op's stage, micro-batch and
// pass alone: so it does not matter in which order ops are asked for. It computes with integers alone, so that all
// machines give the same.
class Jitter {
 public:
  explicit Jitter(const Costs& costs);
  [[nodiscard]] bool off() const { return width_ == 0; }
  [[nodiscard]] Time scale(Time duration, Op op) const;

 private:
  std::int64_t width_;  // in parts of 2^-30
  std::uint64_t seed_;
};

}  // namespace dualpipe::detail::simulate
