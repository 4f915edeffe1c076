#include "dualpipe/sim/generate/automatic.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <utility>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/tasks.h"

namespace dualpipe::detail::generate {
namespace {

constexpr std::array planned_kinds{Kind::forward, Kind::input_gradient, Kind::weight_gradient};

// Of a model without parts it is an error that says so.
bool are_known(const GivenCosts& costs) {
  return std::holds_alternative<ModelCosts>(costs) || !entries_of(costs).empty();
}

// Where nobody says what an op costs, all cost the same.
Costs costs_of(const Request& request, const Placement& placement) {
  if (are_known(request.costs)) return stage_costs(request.costs, placement);
  if (request.memory_limit && request.memory_limit->unit == MemoryLimit::Unit::bytes) {
    throw InputError(fmt::format(
        "{}: the memory limit of {} cannot be kept without knowing what the stages hold; give their costs, or the "
        "limit in micro-batches",
        request.family, to_text(*request.memory_limit)));
  }
  StageCosts stage;
  stage.forward = stage.input_gradient = stage.weight_gradient = 1;
  stage.backward = stage.input_gradient + stage.weight_gradient;
  Costs costs;
  costs.stages = {stage};
  return costs;
}

std::vector<PlannedStage> stages_of(const Program& program, const Costs& costs) {
  const simulate::Tasks tasks(program, costs);
  const Placement& placement = program.schedule.placement;
  // With more than that simulate() would not take the costs.
  const auto ops = static_cast<Time>(planned_kinds.size() * placement.rank_of.size()) * program.schedule.micro_batches;
  const Time launch = std::min(costs.launch, run_time_max / ops);
  std::vector<PlannedStage> stages;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto task = [&](Kind kind) { return tasks.of({0, static_cast<std::uint16_t>(stage), kind, false}); };
    const auto duration = [&](Kind kind) { return task(kind).duration + launch; };
    const auto delay = [&](Kind kind) { return task(kind).in == nullptr ? 0 : task(kind).in->transfer - launch; };
    stages.push_back({duration(Kind::forward), duration(Kind::input_gradient), duration(Kind::weight_gradient),
                      delay(Kind::forward), delay(Kind::input_gradient)});
  }
  return stages;
}

std::vector<PlannedRank> ranks_of(const Placement& placement, const Costs& counted) {
  std::vector<PlannedRank> ranks(static_cast<std::size_t>(placement.ranks));
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const StageCosts& cost = counted.of(stage);
    PlannedRank& rank = ranks[placement.rank_of[static_cast<std::size_t>(stage)]];
    rank.activation = std::max({rank.activation, cost.held_activation(), cost.weight_stash});
    rank.stash = std::max(rank.stash, cost.weight_stash);
  }
  return ranks;
}

Bytes times(std::int64_t count, Bytes bytes) {
  constexpr Bytes most = std::numeric_limits<Bytes>::max() / 2;
  return bytes > 0 && count > most / bytes ? most : count * bytes;
}

void add(const PlannedOrder& order, ScheduleBuilder& builder) {
  std::vector<std::array<std::int64_t, kind_count>> seen(builder.placement().rank_of.size());
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    builder.go_to(static_cast<int>(rank));
    for (const auto [kind, stage] : order[rank]) {
      builder.add(kind, stage, seen[stage][static_cast<std::size_t>(kind)]++);
    }
  }
}

// What a rank holds besides activations and stashes, as far as it can be told before there is an order: not the
// messages that wait for their ops.
Bytes held_besides(const Costs& costs, std::span<const int> stages) {
  Bytes resident = 0;
  Bytes workspace = 0;
  for (const int stage : stages) {
    const StageCosts& cost = costs.of(stage);
    resident += cost.parameters + cost.gradients + cost.optimizer;
    for (const Kind kind : planned_kinds) workspace = std::max(workspace, cost.workspace(kind));
  }
  return resident + workspace;
}

// Plans until what the ranks really hold keeps the limit.
class Limited {
 public:
  Limited(const Request& request, const Planner& planner, const Placement& placement, const Costs& costs, Plan plan)
      : request_(request),
        limit_(*request.memory_limit),
        planner_(planner),
        placement_(placement),
        costs_(costs),
        plan_(std::move(plan)) {
    const StagesByRank by_rank(placement);
    for (int rank = 0; rank < placement.ranks; ++rank) {
      const Bytes activation = plan_.ranks[static_cast<std::size_t>(rank)].activation;
      const auto stages = by_rank.on(rank);
      least_.push_back(times(planner.activations_least, activation));
      room_.push_back(in_bytes() ? limit_.amount - held_besides(costs, stages)
                                 : micro_batches(static_cast<std::int64_t>(stages.size()), activation));
    }
  }

  [[nodiscard]] PlannedOrder order() {
    constexpr int tries_max = 8;
    for (int tries = 1;; ++tries) {
      for (std::size_t rank = 0; rank < room_.size(); ++rank) {
        room_[rank] = std::max(room_[rank], least_[rank]);
        plan_.ranks[rank].limit = room_[rank];
      }
      PlannedOrder order = planner_.order(plan_);
      const auto needed = needed_for(order);
      const auto keeps = [&](const MemoryLimit& each) { return each.amount <= limit_.amount; };
      if (std::ranges::all_of(needed, keeps)) return order;
      if (room_ == least_) throw MemoryLimitError(request_.family, limit_, needed);
      if (tries == tries_max || !in_bytes()) room_ = least_;
      for (std::size_t rank = 0; rank < room_.size(); ++rank) {
        if (!keeps(needed[rank])) room_[rank] -= needed[rank].amount - limit_.amount;
      }
    }
  }

 private:
  [[nodiscard]] bool in_bytes() const { return limit_.unit == MemoryLimit::Unit::bytes; }
  [[nodiscard]] Bytes micro_batches(std::int64_t stages, Bytes activation) const {
    __extension__ using Int128 = __int128;
    const Int128 bytes = Int128{limit_.amount} * stages * activation / MemoryLimit::per_micro_batch;
    return static_cast<Bytes>(std::min<Int128>(bytes, std::numeric_limits<Bytes>::max() / 2));
  }
  [[nodiscard]] std::vector<MemoryLimit> needed_for(const PlannedOrder& order) const {
    ScheduleBuilder builder(placement_, static_cast<std::uint32_t>(plan_.micro_batches), 0);
    add(order, builder);
    return memory_needed(lower(builder.take(request_.family)), costs_, limit_.unit);
  }

  const Request& request_;
  MemoryLimit limit_;
  const Planner& planner_;
  const Placement& placement_;
  const Costs& costs_;
  Plan plan_;
  std::vector<Bytes> least_;  // by rank, for activations and stashes
  std::vector<Bytes> room_;   // and what there is
};

}  // namespace

void add_planned_order(const Request& request, const Planner& planner, ScheduleBuilder& builder) {
  const Placement placement = builder.placement();
  const Costs costs = costs_of(request, placement);
  const Program program = empty_program(placement, request.shape.micro_batches);
  const bool in_bytes = request.memory_limit && request.memory_limit->unit == MemoryLimit::Unit::bytes;
  const Costs counted = in_bytes ? costs : activation_shares(costs, placement);
  (void)memory_of_ranks(program, counted);  // refuses what 64 bits could not count
  Plan plan{request.shape.micro_batches, stages_of(program, costs), ranks_of(placement, counted)};
  if (request.memory_limit) {
    add(Limited(request, planner, placement, costs, std::move(plan)).order(), builder);
    return;
  }
  for (PlannedRank& rank : plan.ranks) rank.limit = times(planner.activations_given, rank.activation);
  add(planner.order(plan), builder);
}

}  // namespace dualpipe::detail::generate
