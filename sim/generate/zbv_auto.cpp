// ZBV by the zero-bubble authors' automatic scheduler (arXiv:2405.15362, section 3; arXiv:2401.10241, section 3.1;
// https://github.com/sail-sg/zero-bubble-pipeline-parallelism): as zb-auto, on a V. A rank r holds two stages, r (F1,
// I1) and 2P-1-r (F2, I2), and the memory limit is P micro-batches unless another one is given. Where F = I = W it has
// no bubble by span.
//
// One greedy run, with the clock, the memory and the idle time (since its first F1) of every rank in hand:
//
// 1. F1 of micro-batch 0 on all ranks. From the last rank r to the first: while F2 of micro-batch 0 is still on its way
//    here, and memory has room for it and for one micro-batch on each of the ranks up to r, one F1 more on each of
//    these; then F2.
// 2. From the second rank to the last: F1 and F2 in turn on it and on all behind it, until it has as many forwards as
//    the rank before it, and an F2 more.
// 3. 2M rounds. Every rank runs an I: I2 if I1 has caught up with it, else I1 if its gradient is there or there is no
// I2
//    left, else I2; all I1 from the last rank up, then all I2 from the first rank down. Then every rank runs an F, in
//    order: F1 if F2 has caught up with it, else F2 if its input is there, else F1 if its is, else none.
// 4. Before each of these: W, first in, first out, while memory is short of an F; W while they end before the input
// comes
//    from another rank. Into a gap that is too short for one more it goes if the gap is long next to the rank that has
//    idled most, or to this rank's slack (I: before an I2, F: before an F; before an I1 always).
// 5. The W that are left.
//
// A run has no slack; its ranks' idle times, below that of the one that idled most, are the slack of the next, as long
// as that idles less. All of it with I and F each true first; the run whose worst rank idles least counts, the first of
// equals.
//
// Drawing: zbv-auto, 3 ranks, 4 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: 0F0 0F1 0F2 0F3 .   5F0 5I0 5F1 5I1 5W0 5F2 5I2 5W1 0I0 5W2 5F3 5I3 0I1 0W0 0I2 5W3 0I3 0W1 0W2 0W3 .
//   rank 1: .   1F0 1F1 1F2 4F0 1F3 4F1 4I0 4W0 4F2 4I1 4W1 1I0 1W0 4F3 4I2 1I1 4I3 1I2 4W2 1I3 1W1 4W3 1W2 1W3 .
//   rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3I0 3W0 2F3 2I0 2W0 3F3 3I1 2I1 3I2 2I2 3I3 2I3 3W1 2W1 3W2 2W2 3W3 2W3
//
// Shapes: any.
// Peak memory: the limit, at least P micro-batches (M, if that is less). Bubble where F = I = W: (P-1)F by makespan.
#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/automatic.h"
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// Which half of the V: an index.
enum Half : std::uint8_t { first, second };

struct ZbvFlags {
  bool fills_before_second_input_gradient;  // I
  bool fills_before_forward;                // F
};

class ZbvRun {
 public:
  // `slack` by rank.
  ZbvRun(const Plan& plan, ZbvFlags flags, const std::vector<Time>& slack)
      : plan_(plan), flags_(flags), slack_(slack), ranks_(plan.ranks.size()), order_(plan.ranks.size()) {
    const auto micro_batches = static_cast<std::size_t>(plan.micro_batches);
    for (auto& of_rank : order_) of_rank.reserve(6 * micro_batches);
    for (auto& rank : ranks_) rank.pending.reserve(2 * micro_batches);
    for (auto& of_pass : end_) of_pass.resize(ranks_.size() * micro_batches);
  }

  void run() {
    warm_up();
    even_out();
    for (std::int64_t round = 0; round < 2 * plan_.micro_batches; ++round) {
      run_input_gradients();
      run_forwards();
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      while (has_pending(r)) run_weight_gradient(r);
    }
  }

  [[nodiscard]] Time idle_most() const { return idle_most_; }
  // By rank: how much less than the one that idled most.
  [[nodiscard]] std::vector<Time> slack() const {
    std::vector<Time> slack;
    for (const Rank& rank : ranks_) slack.push_back(idle_most_ - rank.idle);
    return slack;
  }
  [[nodiscard]] PlannedOrder take_order() { return std::move(order_); }

 private:
  struct Rank {
    Time clock = 0;
    Time idle = 0;
    Bytes memory = 0;
    std::array<std::int64_t, 2> forwards{};  // by half
    std::array<std::int64_t, 2> input_gradients{};
    std::vector<Half> pending;  // of every I, its half; W have run up to `weight_gradients`
    std::size_t weight_gradients = 0;
  };
  enum class Pass : std::uint8_t { forward, input_gradient };

  // So many there is always time for where all stages cost the same. Else the order has to have them all the same: a
  // rank must be ahead of the next one by what that will run in step 2.
  static constexpr int extra_least = 2;

  [[nodiscard]] std::size_t stage(std::size_t r, Half half) const {
    return half == first ? r : 2 * ranks_.size() - 1 - r;
  }
  [[nodiscard]] std::int64_t done(Pass pass, Half half, std::size_t r) const {
    const Rank& rank = ranks_[r];
    return (pass == Pass::forward ? rank.forwards : rank.input_gradients)[half];
  }
  // The rank that makes the input of a pass; none if that is this one, or nobody.
  [[nodiscard]] std::optional<std::size_t> maker(Pass pass, Half half, std::size_t r) const {
    const bool from_before = (half == first) == (pass == Pass::forward);
    if (from_before) return r == 0 ? std::nullopt : std::optional(r - 1);
    return r + 1 == ranks_.size() ? std::nullopt : std::optional(r + 1);
  }
  // Whether another rank has made the input of this one's next pass, or need not.
  [[nodiscard]] bool is_made(Pass pass, Half half, std::size_t r) const {
    const auto from = maker(pass, half, r);
    return !from || done(pass, half, *from) > done(pass, half, r);
  }
  [[nodiscard]] Time& end(Pass pass, Half half, std::size_t r, std::int64_t micro_batch) {
    auto& ends = end_[2 * static_cast<std::size_t>(pass) + half];
    return ends[r * static_cast<std::size_t>(plan_.micro_batches) + static_cast<std::size_t>(micro_batch)];
  }
  // When it comes from another rank; none where it does not.
  [[nodiscard]] std::optional<Time> arrival(Pass pass, Half half, std::size_t r) {
    const auto from = maker(pass, half, r);
    if (!from) return std::nullopt;
    const PlannedStage& planned = plan_.stages[stage(r, half)];
    return end(pass, half, *from, done(pass, half, r)) +
           (pass == Pass::forward ? planned.activation_delay : planned.gradient_delay);
  }

  void warm_up() {
    for (std::size_t r = 0; r < ranks_.size(); ++r) run(Pass::forward, first, r);
    for (std::size_t r = ranks_.size(); r-- > 0;) {
      if (const auto comes = arrival(Pass::forward, second, r)) {
        for (int more = 0; ranks_[r].forwards[first] < plan_.micro_batches && has_room_up_to(r); ++more) {
          if (more >= extra_least && ranks_[r].clock + plan_.stages[r].forward > *comes) break;
          for (std::size_t i = 0; i <= r; ++i) run(Pass::forward, first, i);
        }
      }
      run(Pass::forward, second, r);
    }
  }

  // On each of the ranks up to r there are as many activations; each of these ranks will need two more.
  [[nodiscard]] bool has_room_up_to(std::size_t r) const {
    for (std::size_t i = 0; i <= r; ++i) {
      const PlannedRank& memory = plan_.ranks[i];
      const auto more = static_cast<Bytes>(2 * (r + 1));
      if (memory.activation > 0 && more > (memory.limit - ranks_[i].memory) / memory.activation) return false;
    }
    return true;
  }

  void even_out() {
    Half half = first;
    for (std::size_t r = 1; r < ranks_.size(); ++r) {
      const auto is_behind = [&] {
        const auto& ours = ranks_[r].forwards;
        const auto& theirs = ranks_[r - 1].forwards;
        return ours[first] + ours[second] < theirs[first] + theirs[second] ||
               (ours[second] <= theirs[second] && theirs[second] < plan_.micro_batches);
      };
      while (is_behind()) {
        for (std::size_t i = ranks_.size(); i-- > r;) {
          if (ranks_[i].forwards[half] < plan_.micro_batches) run(Pass::forward, half, i);
        }
        half = half == first ? second : first;
      }
    }
  }

  void run_input_gradients() {
    std::vector<Half>& halves = next_;
    halves.clear();
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const auto& passed = ranks_[r].input_gradients;
      const bool is_first = passed[first] < passed[second] &&
                            (is_made(Pass::input_gradient, first, r) || passed[second] == plan_.micro_batches);
      halves.push_back(is_first ? first : second);
    }
    for (std::size_t r = ranks_.size(); r-- > 0;) {
      if (halves[r] == first) run_after_weight_gradients(Pass::input_gradient, first, r, true);
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      if (halves[r] == first) continue;
      run_after_weight_gradients(Pass::input_gradient, second, r, flags_.fills_before_second_input_gradient);
    }
  }

  void run_forwards() {
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const auto half = next_forward(r);
      if (!half) continue;
      while (plan_.ranks[r].activation > plan_.ranks[r].limit - ranks_[r].memory) run_weight_gradient(r);
      run_after_weight_gradients(Pass::forward, *half, r, flags_.fills_before_forward);
    }
  }
  [[nodiscard]] std::optional<Half> next_forward(std::size_t r) const {
    const auto& passed = ranks_[r].forwards;
    if (passed[second] == plan_.micro_batches) return std::nullopt;
    if (passed[second] == passed[first]) return first;
    if (is_made(Pass::forward, second, r)) return second;
    if (passed[first] < plan_.micro_batches && is_made(Pass::forward, first, r)) return first;
    return std::nullopt;
  }

  [[nodiscard]] bool has_pending(std::size_t r) const { return ranks_[r].weight_gradients < ranks_[r].pending.size(); }

  // Before the pass W, as far as there is time for them, and into the rest of the gap one more, if the pass may fill
  // it.
  void run_after_weight_gradients(Pass pass, Half half, std::size_t r, bool fills) {
    const Rank& rank = ranks_[r];
    if (const auto comes = arrival(pass, half, r)) {
      while (has_pending(r) && rank.clock + weight_gradient_time(r) <= *comes) run_weight_gradient(r);
      const Time wait = *comes - rank.clock;
      if (fills && has_pending(r) && wait > std::max(idle_most_, slack_[r]) - rank.idle) run_weight_gradient(r);
    }
    run(pass, half, r);
  }

  [[nodiscard]] Time weight_gradient_time(std::size_t r) const {
    const Rank& rank = ranks_[r];
    return plan_.stages[stage(r, rank.pending[rank.weight_gradients])].weight_gradient;
  }

  void run(Pass pass, Half half, std::size_t r) {
    assert(is_made(pass, half, r));
    Rank& rank = ranks_[r];
    const PlannedStage& planned = plan_.stages[stage(r, half)];
    const PlannedRank& memory = plan_.ranks[r];
    if (const auto comes = arrival(pass, half, r); comes && *comes > rank.clock) {
      if (rank.forwards[first] > 0) rank.idle += *comes - rank.clock;
      idle_most_ = std::max(idle_most_, rank.idle);
      rank.clock = *comes;
    }
    const bool is_forward = pass == Pass::forward;
    rank.clock += is_forward ? planned.forward : planned.input_gradient;
    rank.memory += is_forward ? memory.activation : memory.stash - memory.activation;
    std::int64_t& passed = (is_forward ? rank.forwards : rank.input_gradients)[half];
    end(pass, half, r, passed++) = rank.clock;
    if (!is_forward) rank.pending.push_back(half);
    order_[r].push_back(
        {is_forward ? Kind::forward : Kind::input_gradient, static_cast<std::uint16_t>(stage(r, half))});
  }

  void run_weight_gradient(std::size_t r) {
    assert(has_pending(r));
    Rank& rank = ranks_[r];
    rank.clock += weight_gradient_time(r);
    rank.memory -= plan_.ranks[r].stash;
    const Half half = rank.pending[rank.weight_gradients++];
    order_[r].push_back({Kind::weight_gradient, static_cast<std::uint16_t>(stage(r, half))});
  }

  const Plan& plan_;
  ZbvFlags flags_;
  const std::vector<Time>& slack_;
  std::vector<Rank> ranks_;
  std::vector<Half> next_;
  Time idle_most_ = 0;                    // of any rank
  std::array<std::vector<Time>, 4> end_;  // by pass and half; each by rank and micro-batch
  PlannedOrder order_;
};

// In step 2 a rank takes as many forwards as the one before it, whatever its own limit. So the rank that has room for
// the fewest of its activations sets the limit of all.
Plan with_even_limits(Plan plan) {
  __extension__ using Int128 = __int128;
  const std::vector<PlannedRank> ranks = plan.ranks;
  for (PlannedRank& rank : plan.ranks) {
    for (const PlannedRank& other : ranks) {
      if (other.activation == 0) continue;
      const Int128 room = Int128{other.limit} * rank.activation / other.activation;
      rank.limit = static_cast<Bytes>(std::min<Int128>(rank.limit, room));
    }
  }
  return plan;
}

PlannedOrder best_zbv_order(const Plan& given) {
  const Plan plan = with_even_limits(given);
  std::optional<Time> least;
  PlannedOrder best;
  for (const bool before_second : {true, false}) {
    for (const bool before_forward : {true, false}) {
      std::vector<Time> slack(plan.ranks.size(), 0);
      for (std::optional<Time> idle_before;;) {
        ZbvRun run(plan, {before_second, before_forward}, slack);
        run.run();
        if (idle_before && run.idle_most() >= *idle_before) break;
        idle_before = run.idle_most();
        slack = run.slack();
        if (least && run.idle_most() >= *least) continue;
        least = run.idle_most();
        best = run.take_order();
      }
    }
  }
  return best;
}

void zbv_auto_order(const Request& request, ScheduleBuilder& builder) {
  const std::int64_t ranks = request.shape.ranks;
  // All that there are fit, too, where there are fewer micro-batches than ranks: with room for one less it works.
  const std::int64_t least = request.shape.micro_batches < ranks ? 2 * ranks - 1 : 2 * ranks;
  add_planned_order(request, {best_zbv_order, least, 2 * ranks}, builder);
}

BubbleFormula zbv_auto_bubble(const SymbolValues& s) {
  using enum Symbol;
  return {"(P-1)F",
          s.p - 1,
          s.f,
          {splits_evenly(s),
           {s.f == s.i && s.i == s.w, "F = I = W", {forward, input_gradient, weight_gradient}},
           micro_batches_at_least(s, "M >= 2P-1", 2 * s.p - 1)}};
}

}  // namespace

Family zbv_auto() {
  return {.name = "zbv-auto",
          .title = "ZBV: no bubble by span at F=I=W, memory of 1F1B, in a V; the authors' scheduler",
          .paper = "arXiv:2405.15362",
          .rule = "any shape",
          .splits_backward = true,
          .is_automatic = true,
          .placement = [](const Shape& shape) { return v_shape(shape.ranks); },
          .order = zbv_auto_order,
          .bubble = zbv_auto_bubble};
}

}  // namespace dualpipe::detail::generate
