// ZB-1p, ZB-2p and all between and beyond: the zero-bubble authors' automatic scheduler (arXiv:2401.10241, section 3.1;
// https://github.com/sail-sg/zero-bubble-pipeline-parallelism). Its order depends on the durations, on the latency of
// messages and on the memory limit: with P micro-batches it is ZB-1p, which holds what 1F1B's first rank does, with 2P
// it is ZB-2p; without a limit it takes what helps.
//
// One greedy run, with the clock, the memory and the idle time (since its first F) of every rank in hand:
//
// 1. Warm-up. F of micro-batch 0 on all ranks. From the rank before the last to the first, as many F more as memory has
//    room for before the gradient comes back (A: they end by then; else they begin before then). A rank has fewer than
//    the one before it, unless that has all there are. Then I of micro-batch 0 from the last rank to the first.
// 2. A round for each micro-batch that follows: an F on each rank that wants one, in order; then I of the micro-batch
// from
//    the last rank to the first. A rank wants an F while there are any, if the next one does. (B: one that is 2 or more
//    ahead of the next rank passes if it will be late: if that could have run an F and the I that this rank waits for,
//    or if the F, after the W that must make room, would end too late and the wait is short next to the rank that has
//    idled most.)
// 3. Before each: W while memory is short of an F; W while they end before the input comes. Into a gap that is too
// short
//    for one more W it goes if the gap is long next to the rank that has idled most (C: in any case).
// 4. The W that are left.
//
// Eight runs, with A, B and C each true first; the one with the shortest span counts, the first of equals.
//
// Drawing: zb-auto, 3 ranks, 4 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: F0 F1 F2 F3 .  I0 W0 I1 W1 I2 W2 I3 W3 .
//   rank 1: .  F0 F1 F2 I0 F3 I1 W0 I2 W1 I3 W2 W3 .
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 W0 W1 W2 W3
//
// Shapes: any.
// Peak memory: the limit. It needs room for one activation.
#include <algorithm>
#include <cassert>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/automatic.h"
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

struct Flags {
  bool ends_in_time;  // A
  bool lets_pass;     // B
  bool fills_gaps;    // C
};

// One of the eight.
class GreedyRun {
 public:
  GreedyRun(const Plan& plan, Flags flags)
      : plan_(plan), flags_(flags), ranks_(plan.ranks.size()), order_(plan.ranks.size()) {
    const auto passes = 3 * static_cast<std::size_t>(plan.micro_batches);
    for (auto& of_rank : order_) of_rank.reserve(passes);
    forward_end_.resize(plan.ranks.size() * static_cast<std::size_t>(plan.micro_batches));
    input_gradient_end_.resize(forward_end_.size());
  }

  void run() {
    warm_up();
    for (std::int64_t i = 1; i < plan_.micro_batches; ++i) {
      run_forwards();
      run_input_gradients();
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) run_pending(r);
  }

  // Of the rank that has the longest.
  [[nodiscard]] Time span() const {
    Time longest = 0;
    for (const Rank& rank : ranks_) longest = std::max(longest, rank.clock - rank.begin);
    return longest;
  }
  [[nodiscard]] PlannedOrder take_order() { return std::move(order_); }

 private:
  struct Rank {
    Time clock = 0;
    Time begin = 0;  // of its first F
    Time idle = 0;   // since
    Bytes memory = 0;
    std::int64_t forwards = 0;
    std::int64_t input_gradients = 0;
    std::int64_t weight_gradients = 0;

    [[nodiscard]] std::int64_t pending() const { return input_gradients - weight_gradients; }
  };

  // The end of an F or I of a micro-batch on a rank.
  [[nodiscard]] Time& end(std::vector<Time>& ends, std::size_t r, std::int64_t micro_batch) const {
    return ends[r * static_cast<std::size_t>(plan_.micro_batches) + static_cast<std::size_t>(micro_batch)];
  }
  // When the input of the rank's next F, or I, has come; none where it needs none of another rank.
  [[nodiscard]] std::optional<Time> activation_arrival(std::size_t r) {
    if (r == 0) return std::nullopt;
    return end(forward_end_, r - 1, ranks_[r].forwards) + plan_.stages[r].activation_delay;
  }
  [[nodiscard]] std::optional<Time> gradient_arrival(std::size_t r) {
    if (r + 1 == ranks_.size()) return std::nullopt;
    return end(input_gradient_end_, r + 1, ranks_[r].input_gradients) + plan_.stages[r].gradient_delay;
  }

  void warm_up() {
    for (std::size_t r = 0; r < ranks_.size(); ++r) run_forward(r);
    const std::vector<std::int64_t> extra = extra_forwards();
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      for (std::int64_t i = 0; i < extra[r]; ++i) run_forward(r);
    }
    for (std::size_t r = ranks_.size(); r-- > 0;) run_input_gradient(r);
  }

  // By rank, beyond the first. The last has none.
  [[nodiscard]] std::vector<std::int64_t> extra_forwards() const {
    std::vector<std::int64_t> extra(ranks_.size());
    Time back = ranks_.back().clock + plan_.stages.back().input_gradient;  // when I of micro-batch 0 has run
    for (std::size_t r = ranks_.size() - 1; r-- > 0;) {
      const PlannedStage& stage = plan_.stages[r];
      const PlannedRank& memory = plan_.ranks[r];
      const Time arrival = back + stage.gradient_delay;
      Time clock = ranks_[r].clock;
      Bytes room = memory.limit - ranks_[r].memory;
      while (extra[r] + 1 < plan_.micro_batches && memory.activation <= room &&
             (flags_.ends_in_time ? clock + stage.forward <= arrival : clock < arrival)) {
        clock += stage.forward;
        room -= memory.activation;
        ++extra[r];
      }
      back = std::max(clock, arrival) + stage.input_gradient;
    }
    for (std::size_t r = 1; r < ranks_.size(); ++r) {
      const bool all_before = extra[r - 1] + 1 == plan_.micro_batches;
      if (!all_before) extra[r] = std::min(extra[r], std::max<std::int64_t>(extra[r - 1] - 1, 0));
    }
    return extra;
  }

  void run_forwards() {
    std::vector<bool> wants(ranks_.size());
    for (std::size_t r = ranks_.size(); r-- > 0;) {
      const bool next_wants = r + 1 == ranks_.size() || wants[r + 1];
      wants[r] = next_wants && ranks_[r].forwards < plan_.micro_batches && !passes(r);
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      if (!wants[r]) continue;
      while (plan_.ranks[r].activation > plan_.ranks[r].limit - ranks_[r].memory) run_weight_gradient(r);
      if (const auto arrival = activation_arrival(r)) fill_gap(r, *arrival);
      run_forward(r);
    }
  }

  void run_input_gradients() {
    for (std::size_t r = ranks_.size(); r-- > 0;) {
      if (const auto arrival = gradient_arrival(r)) fill_gap(r, *arrival);
      if (r == 0 && ranks_[r].forwards == plan_.micro_batches) run_pending(r);
      run_input_gradient(r);
    }
  }

  // Whether a rank that is ahead of the next one waits for its I rather than run another F.
  [[nodiscard]] bool passes(std::size_t r) const {
    if (!flags_.lets_pass || r + 1 == ranks_.size()) return false;
    const Rank& rank = ranks_[r];
    const Rank& next = ranks_[r + 1];
    if (rank.forwards < next.forwards + 2) return false;
    const PlannedStage& stage = plan_.stages[r];
    const PlannedStage& next_stage = plan_.stages[r + 1];
    const Time awaited = next.clock + next_stage.forward + next_stage.input_gradient + stage.gradient_delay;
    if (rank.clock >= awaited) return true;
    const PlannedRank& memory = plan_.ranks[r];
    Time end = rank.clock + stage.forward;
    Bytes room = memory.limit - rank.memory;
    for (std::int64_t i = 0; i < rank.pending() && room < memory.activation; ++i) {
      end += stage.weight_gradient;
      room += memory.stash;
    }
    return end > awaited && awaited - rank.clock <= idle_most_ - rank.idle;
  }

  void fill_gap(std::size_t r, Time arrival) {
    Rank& rank = ranks_[r];
    while (rank.pending() > 0 && rank.clock + plan_.stages[r].weight_gradient <= arrival) run_weight_gradient(r);
    const Time gap = arrival - rank.clock;
    if (rank.pending() == 0 || gap <= 0) return;
    if (flags_.fills_gaps || gap > idle_most_ - rank.idle) run_weight_gradient(r);
  }

  void run_pending(std::size_t r) {
    while (ranks_[r].pending() > 0) run_weight_gradient(r);
  }

  void run_forward(std::size_t r) {
    Rank& rank = ranks_[r];
    wait(rank, activation_arrival(r));
    if (rank.forwards == 0) rank.begin = rank.clock;
    rank.clock += plan_.stages[r].forward;
    rank.memory += plan_.ranks[r].activation;
    end(forward_end_, r, rank.forwards++) = rank.clock;
    order_[r].push_back({Kind::forward, static_cast<std::uint16_t>(r)});
  }

  void run_input_gradient(std::size_t r) {
    Rank& rank = ranks_[r];
    wait(rank, gradient_arrival(r));
    rank.clock += plan_.stages[r].input_gradient;
    rank.memory -= plan_.ranks[r].activation - plan_.ranks[r].stash;
    end(input_gradient_end_, r, rank.input_gradients++) = rank.clock;
    order_[r].push_back({Kind::input_gradient, static_cast<std::uint16_t>(r)});
  }

  void run_weight_gradient(std::size_t r) {
    Rank& rank = ranks_[r];
    assert(rank.pending() > 0);
    rank.clock += plan_.stages[r].weight_gradient;
    rank.memory -= plan_.ranks[r].stash;
    ++rank.weight_gradients;
    order_[r].push_back({Kind::weight_gradient, static_cast<std::uint16_t>(r)});
  }

  void wait(Rank& rank, std::optional<Time> arrival) {
    if (!arrival || *arrival <= rank.clock) return;
    if (rank.forwards > 0) rank.idle += *arrival - rank.clock;
    idle_most_ = std::max(idle_most_, rank.idle);
    rank.clock = *arrival;
  }

  const Plan& plan_;
  Flags flags_;
  std::vector<Rank> ranks_;
  Time idle_most_ = 0;                    // of any rank
  std::vector<Time> forward_end_;         // by rank and micro-batch
  std::vector<Time> input_gradient_end_;  // the same
  PlannedOrder order_;
};

PlannedOrder best_order(const Plan& plan) {
  std::optional<Time> shortest;
  PlannedOrder best;
  for (const bool a : {true, false}) {
    for (const bool b : {true, false}) {
      for (const bool c : {true, false}) {
        GreedyRun run(plan, {a, b, c});
        run.run();
        if (shortest && run.span() >= *shortest) continue;
        shortest = run.span();
        best = run.take_order();
      }
    }
  }
  return best;
}

void zb_auto_order(const Request& request, ScheduleBuilder& builder) {
  add_planned_order(request, {best_order, 1, request.shape.micro_batches}, builder);
}

}  // namespace

Family zb_auto() {
  return {.name = "zb-auto",
          .title = "ZB-1p, ZB-2p, …: the zero-bubble authors' scheduler",
          .paper = "arXiv:2401.10241",
          .rule = "any shape",
          .splits_backward = true,
          .is_automatic = true,
          .placement = straight_placement,
          .order = zb_auto_order};
}

}  // namespace dualpipe::detail::generate
