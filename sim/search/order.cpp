#include "dualpipe/sim/search/order.h"

#include <array>
#include <deque>
#include <limits>
#include <utility>

#include "dualpipe/sim/schedule/schedule_builder.h"

namespace dualpipe::detail::search {

Ops::Ops(const Problem& problem)
    : micro_batches_(problem.micro_batches),
      none_(problem.stages.size() * 3 * static_cast<std::size_t>(problem.micro_batches)) {
  begin_.resize(static_cast<std::size_t>(problem.ranks()) + 1);
  for (std::size_t r = 0; r + 1 < begin_.size(); ++r) {
    begin_[r + 1] = begin_[r] + 3 * problem.stages_on[r].size() * static_cast<std::size_t>(micro_batches_);
  }
  const auto no_rank = static_cast<std::uint16_t>(problem.ranks());
  for (std::size_t s = 0; s < problem.stages.size(); ++s) {
    const ProblemStage& stage = problem.stages[s];
    effect_.insert(effect_.end(), {stage.activation, stage.stash - stage.activation, -stage.stash});
    for (const Pass pass : {Pass::forward, Pass::input_gradient, Pass::weight_gradient}) {
      std::size_t before = s;  // the stage that makes its input
      if (pass == Pass::forward && !stage.begins_chain) before = s - 1;
      if (pass == Pass::input_gradient && !stage.ends_chain) before = s + 1;
      const bool is_remote = problem.stages[before].rank != stage.rank;
      OpInfo info{none(), no_rank, static_cast<std::uint16_t>(s), stage.forward, stage.to_next};
      if (pass == Pass::input_gradient) info.duration = stage.input_gradient, info.travels = stage.to_previous;
      if (pass == Pass::weight_gradient) info.duration = stage.weight_gradient, info.travels = 0;
      if (is_remote) info.before_rank = static_cast<std::uint16_t>(problem.stages[before].rank);
      for (std::int64_t m = 0; m < micro_batches_; ++m) {
        if (is_remote) info.before = id(static_cast<int>(before), pass, m);
        info_.push_back(info);
      }
    }
  }
  info_.push_back({none(), no_rank, 0, 0, 0});
}

Schedule schedule_of(const Order& order, const Ops& ops, const Problem& problem, std::string name) {
  ScheduleBuilder builder(problem.placement, static_cast<std::uint32_t>(problem.micro_batches), order.size());
  constexpr std::array kinds{Kind::forward, Kind::input_gradient, Kind::weight_gradient};
  std::vector<std::deque<OpId>> waiting(problem.stages.size());  // for W
  for (int rank = 0; rank < problem.ranks(); ++rank) {
    builder.go_to(rank);
    for (std::size_t p = ops.begin(rank); p < ops.end(rank); ++p) {
      OpId op = op_of(order[p]);
      const Pass pass = ops.pass(op);
      auto& of_stage = waiting[static_cast<std::size_t>(ops.stage(op))];
      if (pass == Pass::input_gradient && !is_joined(order[p])) {
        of_stage.push_back(ops.id(ops.stage(op), Pass::weight_gradient, ops.micro_batch(op)));
      } else if (pass == Pass::weight_gradient) {
        op = of_stage.front();
        of_stage.pop_front();
      }
      const bool is_pair = pass == Pass::forward && is_joined(order[p]);
      const bool is_full = pass == Pass::input_gradient && is_joined(order[p]);
      builder.add({static_cast<std::uint32_t>(ops.micro_batch(op)), static_cast<std::uint16_t>(ops.stage(op)),
                   is_full ? Kind::backward : kinds[static_cast<std::size_t>(pass)], is_pair});
      if (is_full) ++p;
    }
  }
  return builder.take(std::move(name));
}

Order order_of(const Schedule& schedule, const Ops& ops, const Problem& problem) {
  Order order;
  // The next micro-batch of each stage's pass. Where B and I of a stage come one among the other each takes its own W.
  std::vector<std::array<std::int64_t, 3>> next(problem.stages.size());
  for (int rank = 0; rank < problem.ranks(); ++rank) {
    std::vector<std::vector<std::int64_t>> waiting(problem.stages.size());  // for W
    for (const Op op : schedule.rank(rank)) {
      const int s = op.stage;
      auto& counts = next[op.stage];
      if (op.kind == Kind::forward) {
        order.push_back(ops.id(s, Pass::forward, counts[0]++) | (op.with_next && problem.has_pairs ? joined : 0));
      } else if (op.kind == Kind::weight_gradient) {
        order.push_back(ops.id(s, Pass::weight_gradient, waiting[op.stage].front()));
        waiting[op.stage].erase(waiting[op.stage].begin());
      } else {
        const std::int64_t m = counts[1]++;
        const bool is_full = op.kind == Kind::backward;
        const bool joins = is_full && (problem.has_pairs || problem.joins_backwards());
        order.push_back(ops.id(s, Pass::input_gradient, m) | (joins ? joined : 0));
        if (is_full) {
          order.push_back(ops.id(s, Pass::weight_gradient, m));
        } else {
          waiting[op.stage].push_back(m);
        }
      }
    }
  }
  return order;
}

bool holds_no_more(const Order& order, const Ops& ops, const Problem& problem) {
  for (int rank = 0; rank < problem.ranks(); ++rank) {
    Bytes held = 0;
    for (std::size_t p = ops.begin(rank); p < ops.end(rank); ++p) {
      held += ops.effect(op_of(order[p]));
      if (held > problem.room[static_cast<std::size_t>(rank)]) return false;
    }
  }
  return true;
}

}  // namespace dualpipe::detail::search
