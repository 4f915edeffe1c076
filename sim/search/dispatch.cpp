#include "dualpipe/sim/search/dispatch.h"

#include <algorithm>
#include <array>
#include <limits>

namespace dualpipe::detail::search {
namespace {

constexpr Time never = std::numeric_limits<Time>::max();

class Dispatcher {
 public:
  Dispatcher(const Problem& problem, const Ops& ops, const DispatchRule& rule)
      : problem_(problem), ops_(ops), rule_(rule), order_(ops.count()), ranks_(problem.stages_on.size()) {
    next_.resize(problem.stages.size());
    arrived_.assign(ops.count(), never);
    for (std::size_t s = 0; s < problem.stages.size(); ++s) {
      for (std::int64_t m = 0; problem.stages[s].begins_chain && m < problem.micro_batches; ++m) {
        arrived_[ops.id(static_cast<int>(s), Pass::forward, m)] = 0;
      }
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      ranks_[r].position = ops.begin(static_cast<int>(r));
      later_bytes(r);
    }
  }

  std::optional<Order> take() {
    std::size_t left = ops_.count();
    while (left > 0) {
      // The rank that is free first; one that has nothing to run looks again when something arrives.
      int rank = -1;
      for (int r = 0; r < problem_.ranks(); ++r) {
        const Rank& each = ranks_[static_cast<std::size_t>(r)];
        if (each.position == ops_.end(r) || each.clock == never) continue;
        if (rank < 0 || each.clock < ranks_[static_cast<std::size_t>(rank)].clock) rank = r;
      }
      if (rank < 0) return std::nullopt;
      if (run_next(rank)) --left;
    }
    return std::move(order_);
  }

 private:
  struct Rank {
    Time clock = 0;  // never: asleep
    Time free = 0;
    std::size_t position = 0;
    Bytes held = 0;
  };
  struct Choice {
    int stage = -1;
    Pass pass = Pass::forward;
    Time key = never;
    Time arrives = never;
  };

  // What has to stay free for the stages behind a stage on its rank, so that micro-batches can go on.
  void later_bytes(std::size_t rank) {
    Bytes later = 0;
    const auto& stages = problem_.stages_on[rank];
    later_.resize(problem_.stages.size());
    for (std::size_t i = stages.size(); i-- > 0;) {
      const auto s = static_cast<std::size_t>(stages[i]);
      later_[s] = later;
      const bool goes_on = i > 0 && chain_of(stages[i - 1]) == chain_of(stages[i]);
      later = goes_on ? later + problem_.stages[s].activation : 0;
    }
  }
  [[nodiscard]] int chain_of(int stage) const { return problem_.placement.chain_of(stage); }

  [[nodiscard]] bool may_start(int rank, int s) const {
    const ProblemStage& stage = problem_.stages[static_cast<std::size_t>(s)];
    const Rank& at = ranks_[static_cast<std::size_t>(rank)];
    if (at.held + stage.activation + later_[static_cast<std::size_t>(s)] >
        problem_.room[static_cast<std::size_t>(rank)]) {
      return false;
    }
    if (rule_.in_flight.empty()) return true;
    const auto& stages = problem_.stages_on[static_cast<std::size_t>(rank)];
    const bool is_first = s == stages.front() || chain_of(s - 1) != chain_of(s);
    const auto& counts = next_[static_cast<std::size_t>(s)];
    return !is_first || counts[0] - counts[1] < rule_.in_flight[static_cast<std::size_t>(rank)];
  }

  // The first of the ops that may run now, and of those that will.
  void look(int rank, Choice& now, Choice& soon) const {
    const Time clock = ranks_[static_cast<std::size_t>(rank)].clock;
    for (const int s : problem_.stages_on[static_cast<std::size_t>(rank)]) {
      const auto& counts = next_[static_cast<std::size_t>(s)];
      for (const Pass pass : {Pass::forward, Pass::input_gradient, Pass::weight_gradient}) {
        const auto i = static_cast<std::size_t>(pass);
        if (counts[i] == problem_.micro_batches || (i > 0 && counts[i] == counts[i - 1])) continue;
        const OpId op = ops_.id(s, pass, counts[i]);
        const Time arrives = pass == Pass::weight_gradient ? 0 : arrived_[op];
        if (arrives == never || (pass == Pass::forward && !may_start(rank, s))) continue;
        const Choice choice{s, pass, rule_.key[3 * static_cast<std::size_t>(s) + i] + rule_.step * counts[i], arrives};
        Choice& best = arrives <= clock ? now : soon;
        const bool is_better = arrives <= clock ? choice.key < best.key : choice.arrives < best.arrives;
        if (is_better) best = choice;
      }
    }
  }

  bool run_next(int rank) {
    Rank& at = ranks_[static_cast<std::size_t>(rank)];
    Choice now, soon;
    look(rank, now, soon);
    if (now.stage >= 0 && soon.stage >= 0 && soon.key < now.key) {
      const Time duration = ops_.of(ops_.id(now.stage, now.pass, 0)).duration;
      if (soon.arrives < at.clock + static_cast<Time>(rule_.patience * static_cast<double>(duration))) now.stage = -1;
    }
    if (now.stage < 0) {
      at.clock = soon.stage >= 0 ? soon.arrives : never;
      return false;
    }
    run(rank, now);
    return true;
  }

  void run(int rank, const Choice& choice) {
    Rank& at = ranks_[static_cast<std::size_t>(rank)];
    auto& count = next_[static_cast<std::size_t>(choice.stage)][static_cast<std::size_t>(choice.pass)];
    const OpId op = ops_.id(choice.stage, choice.pass, count);
    const OpInfo& info = ops_.of(op);
    order_[at.position++] = op;
    at.held += ops_.effect(op);
    at.free = at.clock += info.duration;
    const ProblemStage& stage = problem_.stages[static_cast<std::size_t>(choice.stage)];
    const std::int64_t m = count++;
    if (choice.pass == Pass::forward) {
      deliver(stage.ends_chain ? ops_.id(choice.stage, Pass::input_gradient, m)
                               : ops_.id(choice.stage + 1, Pass::forward, m),
              at.clock + info.travels);
    } else if (choice.pass == Pass::input_gradient && !stage.begins_chain) {
      deliver(ops_.id(choice.stage - 1, Pass::input_gradient, m), at.clock + info.travels);
    }
  }

  void deliver(OpId op, Time arrives) {
    arrived_[op] = arrives;
    Rank& to = ranks_[static_cast<std::size_t>(problem_.stages[static_cast<std::size_t>(ops_.stage(op))].rank)];
    // One that sleeps, or waits for something later, has more to choose from then.
    to.clock = std::max(to.free, std::min(to.clock, arrives));
  }

  const Problem& problem_;
  const Ops& ops_;
  const DispatchRule& rule_;
  Order order_;
  std::vector<Rank> ranks_;
  std::vector<std::array<std::int64_t, 3>> next_;  // by stage: the micro-batch of the next F, I, W
  std::vector<Time> arrived_;                      // by op
  std::vector<Bytes> later_;                       // by stage
};

}  // namespace

std::optional<Order> dispatch(const Problem& problem, const Ops& ops, const DispatchRule& rule) {
  return Dispatcher(problem, ops, rule).take();
}

}  // namespace dualpipe::detail::search
