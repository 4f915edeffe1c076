#include "dualpipe/sim/simulate/memory.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe {
namespace {

// What a rank holds at one moment, or what an op changes in it.
struct Held {
  Bytes bytes = 0;
  int activations = 0;

  friend Held operator+(const Held& a, const Held& b) { return {a.bytes + b.bytes, a.activations + b.activations}; }
};

// When what a rank holds may have grown or shrunk.
enum class Moment : std::uint8_t {
  slot,   // the op before has ended and released what it could; receive buffers are there
  start,  // the op, or pair, begins: its activation and its workspace are there
};

// What an op changes: while it runs, and once it has ended.
struct Effect {
  Held during, after;
};

constexpr std::array passes{Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient};

// Of the ops of one stage: F B I W.
struct StageEffects {
  std::array<Effect, passes.size()> of_kind;
  Bytes input = 0;     // of F
  Bytes gradient = 0;  // of the output, for B or I

  [[nodiscard]] Effect& of(Kind pass) { return of_kind[static_cast<std::size_t>(pass)]; }
};

StageEffects effects_of(const Placement& placement, const Costs& costs, int stage) {
  const StageCosts& cost = costs.of(stage);
  const Op forward_op{0, static_cast<std::uint16_t>(stage), Kind::forward, false};
  const auto previous = producer_of(forward_op, placement);
  const auto next = consumer_of(forward_op, placement);

  StageEffects effects;
  effects.input = previous ? costs.of(previous->stage).message : 0;
  effects.gradient = next ? cost.message : 0;
  const Bytes output_waits = next && !next->is_remote ? effects.gradient : 0;
  const Bytes input_gradient_waits = previous && !previous->is_remote ? effects.input : 0;
  const Bytes forward = cost.held_activation() - effects.input;
  const Bytes backward = input_gradient_waits - cost.held_activation() - effects.gradient;
  effects.of(Kind::forward) = {{forward, 1}, {forward + output_waits, 1}};
  effects.of(Kind::backward).after = {backward, -1};
  effects.of(Kind::input_gradient).after = {backward + cost.weight_stash, -1};
  effects.of(Kind::weight_gradient).after = {-cost.weight_stash, 0};
  for (const Kind pass : passes) effects.of(pass).during.bytes += cost.workspace(pass);
  return effects;
}

}  // namespace

// Walks a rank's ops and slots in order, and tells `visit(position, moment, held)` at every moment when what is held
// may have grown or shrunk.
class RankMemories::Walk {
 public:
  Walk(const Program& program, const Costs& costs)
      : program_(program), costs_(costs), stages_(program.schedule.placement) {
    check(costs, program.schedule.placement);
    for (int stage = 0; stage < program.schedule.placement.stages(); ++stage) {
      effects_.push_back(effects_of(program.schedule.placement, costs, stage));
    }
    receives_ = std::ranges::any_of(costs.stages, [](const StageCosts& each) { return each.message > 0; });
    check_total();
  }

  [[nodiscard]] std::span<const int> stages(int rank) const { return stages_.on(rank); }

  // Parameters, gradients and optimizer state.
  [[nodiscard]] Bytes resident(int rank) const {
    Bytes bytes = 0;
    for (const int stage : stages_.on(rank)) {
      const StageCosts& cost = costs_.of(stage);
      bytes += cost.parameters + cost.gradients + cost.optimizer;
    }
    return bytes;
  }

  [[nodiscard]] const Program& program() const { return program_; }

  template <typename Visit>
  void run(int rank, Visit visit) const {
    Held held{resident(rank), 0};
    const auto ops = program_.schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (receives_) enter(program_.slot(rank, i), held);
      visit(i, Moment::slot, held);
      const Effect& effect = effect_of(ops[i]);
      if (!ops[i].with_next) {
        visit(i, Moment::start, held + effect.during);
        held = held + effect.after;
      } else {
        const Op backward = ops[++i];
        visit(i - 1, Moment::start, held + during_pair(ops[i - 1], backward));
        held = held + effect.after + effect_of(backward).after;
      }
    }
    visit(ops.size(), Moment::slot, held);
  }

 private:
  // Nothing can exceed the sum of all that is ever held.
  void check_total() const {
    double total = 0;
    for (int stage = 0; stage < program_.schedule.placement.stages(); ++stage) {
      const StageCosts& cost = costs_.of(stage);
      const double per_micro_batch = static_cast<double>(cost.activation) + static_cast<double>(cost.weight_stash) +
                                     2 * static_cast<double>(cost.message);
      total += per_micro_batch * program_.schedule.micro_batches + static_cast<double>(cost.parameters) +
               static_cast<double>(cost.gradients) + static_cast<double>(cost.optimizer) + largest_workspace(cost);
    }
    if (total >= 9e18) throw InputError("the memory could exceed 8 EiB, more than 64 bits count; use smaller amounts");
  }

  static double largest_workspace(const StageCosts& cost) {
    Bytes largest = cost.overlapped_workspace.value_or(0);
    for (const Kind pass : passes) largest = std::max(largest, cost.workspace(pass));
    return static_cast<double>(largest);
  }

  [[nodiscard]] const Effect& effect_of(Op op) const {
    return effects_[op.stage].of_kind[static_cast<std::size_t>(op.kind)];
  }
  [[nodiscard]] Held during_pair(Op forward, Op backward) const {
    const StageCosts& ahead = costs_.of(forward.stage);
    const Bytes output = std::min(effects_[forward.stage].gradient, ahead.forward_workspace);
    const Bytes one_by_one =
        std::max(ahead.forward_workspace, output + costs_.of(backward.stage).workspace(backward.kind));
    const Held during = effect_of(forward).during;
    const Bytes workspace = ahead.overlapped_workspace.value_or(one_by_one);
    return {during.bytes - ahead.forward_workspace + workspace, during.activations};
  }

  void enter(std::span<const Op> slot, Held& held) const {
    for (const Op op : slot) {
      if (op.kind == Kind::receive_forward) held.bytes += effects_[op.stage].input;
      if (op.kind == Kind::receive_backward) held.bytes += effects_[op.stage].gradient;
    }
  }

  const Program& program_;
  const Costs& costs_;
  StagesByRank stages_;
  std::vector<StageEffects> effects_;  // by stage
  bool receives_ = false;
};

RankMemories::RankMemories(const Program& program, const Costs& costs)
    : walk_(std::make_unique<const Walk>(program, costs)) {}
RankMemories::~RankMemories() = default;

RankMemory RankMemories::of(int rank) const {
  const Bytes resident = walk_->resident(rank);
  Held peak{resident, 0};  // of each by itself
  std::size_t peak_position = 0;
  std::size_t peak_activations_position = 0;
  walk_->run(rank, [&](std::size_t position, Moment, const Held& held) {
    if (held.activations > peak.activations) {
      peak.activations = held.activations;
      peak_activations_position = position;
    }
    if (held.bytes > peak.bytes) {
      peak.bytes = held.bytes;
      peak_position = position;
    }
  });
  return {static_cast<int>(walk_->stages(rank).size()),
          resident,
          peak.activations,
          peak_activations_position,
          peak.bytes,
          peak_position};
}

std::vector<MemoryPoint> RankMemories::over_time(const Timeline& timeline, int rank) const {
  const std::size_t first = walk_->program().schedule.rank_begin[static_cast<std::size_t>(rank)];
  std::vector<MemoryPoint> points{{0, walk_->resident(rank), 0}};
  walk_->run(rank, [&](std::size_t position, Moment moment, const Held& held) {
    const Time reached = position == 0 ? 0 : timeline.ops[first + position - 1].end;
    const Time time = moment == Moment::slot ? reached : timeline.ops[first + position].start;
    const MemoryPoint point{time, held.bytes, held.activations};
    if (points.back().bytes == point.bytes && points.back().activations == point.activations) return;
    points.push_back(point);
  });
  return points;
}

RankMemory rank_memory(const Program& program, const Costs& costs, int rank) {
  return RankMemories(program, costs).of(rank);
}

std::vector<RankMemory> memory_of_ranks(const Program& program, const Costs& costs) {
  const RankMemories ranks(program, costs);
  std::vector<RankMemory> memories;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) memories.push_back(ranks.of(rank));
  return memories;
}

std::vector<MemoryPoint> memory_over_time(const Program& program, const Costs& costs, const Timeline& timeline,
                                          int rank) {
  return RankMemories(program, costs).over_time(timeline, rank);
}

std::vector<Op> held_at(const Program& program, int rank, std::size_t position) {
  const auto ops = program.schedule.rank(rank);
  const std::size_t running = position > 0 && ops[position - 1].with_next ? position - 1 : position;
  std::map<std::pair<std::uint16_t, std::uint32_t>, std::size_t> held;  // stage and micro-batch: where its F, or I, ran
  for (std::size_t i = 0; i < running; ++i) {
    const std::pair key{ops[i].stage, ops[i].micro_batch};
    if (ops[i].kind == Kind::forward || ops[i].kind == Kind::input_gradient) {
      held[key] = i;
    } else {
      held.erase(key);
    }
  }
  if (ops[running].kind == Kind::forward) held[{ops[running].stage, ops[running].micro_batch}] = running;

  std::vector<std::size_t> order;
  for (const auto& [key, i] : held) order.push_back(i);
  std::ranges::sort(order);
  std::vector<Op> result;
  for (const std::size_t i : order) result.push_back({ops[i].micro_batch, ops[i].stage, ops[i].kind, false});
  return result;
}

}  // namespace dualpipe
