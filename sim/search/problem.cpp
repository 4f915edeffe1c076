#include "dualpipe/sim/search/problem.h"

#include <algorithm>
#include <limits>

#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/tasks.h"

namespace dualpipe::detail::search {
namespace {

void set_times(Problem& problem, const Program& program, const Costs& costs) {
  const simulate::Tasks tasks(program, costs);
  // With more than that simulate() would not take the costs.
  const auto ops = 3 * static_cast<Time>(problem.stages.size()) * problem.micro_batches;
  problem.launch = std::min(costs.launch, run_time_max / ops);
  for (std::size_t s = 0; s < problem.stages.size(); ++s) {
    ProblemStage& stage = problem.stages[s];
    const auto op = [&](Kind kind) { return Op{0, static_cast<std::uint16_t>(s), kind, false}; };
    const auto duration = [&](Kind kind) { return tasks.of(op(kind)).duration + problem.launch; };
    stage.forward = duration(Kind::forward);
    stage.input_gradient = duration(Kind::input_gradient);
    stage.weight_gradient = duration(Kind::weight_gradient);
    stage.backward = duration(Kind::backward);
    if (costs.of(static_cast<int>(s)).overlapped) {
      stage.overlapped = tasks.pair_duration(op(Kind::forward), op(Kind::backward)) + problem.launch;
    }
    const auto way = [&](Kind kind) {
      const simulate::Mailbox* out = tasks.of(op(kind)).out;
      return out == nullptr ? 0 : out->transfer - problem.launch;
    };
    stage.to_next = way(Kind::forward);
    stage.to_previous = way(Kind::input_gradient);
  }
}

// Whether some pair is shorter than its two ops one after the other. Where no F&B is known none is, though a pair is
// one unit, and so has one launch less.
bool pairs_gain(const Problem& problem) {
  if (std::ranges::none_of(problem.stages, [](const ProblemStage& stage) { return stage.overlapped.has_value(); })) {
    return false;
  }
  for (const auto& stages : problem.stages_on) {
    for (const int f : stages) {
      for (const int b : stages) {
        const ProblemStage& ahead = problem.stages[static_cast<std::size_t>(f)];
        const ProblemStage& back = problem.stages[static_cast<std::size_t>(b)];
        const Time apart = ahead.forward + std::min(back.backward, back.input_gradient + back.weight_gradient);
        if (problem.pair_duration(f, b) < apart) return true;
      }
    }
  }
  return false;
}

// What a rank holds besides activations and stashes, at the least.
Bytes held_besides(const Costs& costs, const std::vector<int>& stages) {
  Bytes resident = 0;
  Bytes workspace = std::numeric_limits<Bytes>::max();
  for (const int s : stages) {
    const StageCosts& cost = costs.of(s);
    resident += cost.parameters + cost.gradients + cost.optimizer;
    for (const Kind kind : {Kind::forward, Kind::backward, Kind::input_gradient}) {
      workspace = std::min(workspace, cost.workspace(kind));
    }
    if (cost.overlapped_workspace) workspace = std::min(workspace, *cost.overlapped_workspace);
  }
  return resident + workspace;
}

void set_room(Problem& problem, const Program& program, const Costs& costs, const std::optional<MemoryLimit>& limit) {
  const bool in_bytes = limit && limit->unit == MemoryLimit::Unit::bytes;
  const Costs counted = in_bytes ? costs : activation_shares(costs, problem.placement);
  (void)memory_of_ranks(program, counted);  // refuses what 64 bits could not count
  for (std::size_t s = 0; s < problem.stages.size(); ++s) {
    problem.stages[s].activation = counted.of(static_cast<int>(s)).held_activation();
    problem.stages[s].stash = counted.of(static_cast<int>(s)).weight_stash;
  }
  for (const auto& stages : problem.stages_on) {
    Bytes all = 0;
    for (const int s : stages) {
      const ProblemStage& stage = problem.stages[static_cast<std::size_t>(s)];
      all += problem.micro_batches * std::max(stage.activation, stage.stash);
    }
    Bytes room = all;
    if (in_bytes) {
      room = limit->amount - held_besides(costs, stages);
    } else if (limit) {
      __extension__ using Int128 = __int128;
      const Bytes share = stages.empty() ? 0 : problem.stages[static_cast<std::size_t>(stages[0])].activation;
      room = static_cast<Bytes>(std::min<Int128>(
          Int128{limit->amount} * static_cast<std::int64_t>(stages.size()) * share / MemoryLimit::per_micro_batch,
          all));
    }
    problem.room.push_back(std::min(room, all));
  }
}

}  // namespace

Time Problem::pair_duration(int forward_stage, int backward_stage) const {
  const ProblemStage& ahead = stages[static_cast<std::size_t>(forward_stage)];
  if (ahead.overlapped) return *ahead.overlapped;
  return ahead.forward + stages[static_cast<std::size_t>(backward_stage)].backward - launch;  // one unit
}

bool Problem::joins_backwards() const {
  return std::ranges::any_of(
      stages, [](const ProblemStage& stage) { return stage.backward < stage.input_gradient + stage.weight_gradient; });
}

Problem problem_of(const Placement& placement, std::int64_t micro_batches, const Costs& costs,
                   const std::optional<MemoryLimit>& limit) {
  Problem problem;
  problem.placement = placement;
  problem.micro_batches = micro_batches;
  problem.links = costs.model == CommunicationModel::links;
  problem.releases_early = costs.release_early && costs.model != CommunicationModel::stream;
  problem.stages.resize(placement.rank_of.size());
  problem.stages_on.resize(static_cast<std::size_t>(placement.ranks));
  for (int s = 0; s < placement.stages(); ++s) {
    ProblemStage& stage = problem.stages[static_cast<std::size_t>(s)];
    stage.rank = placement.rank_of[static_cast<std::size_t>(s)];
    stage.begins_chain = !placement.previous(s);
    stage.ends_chain = !placement.next(s);
    problem.stages_on[static_cast<std::size_t>(stage.rank)].push_back(s);
  }
  const Program program = empty_program(placement, micro_batches);
  set_times(problem, program, costs);
  set_room(problem, program, costs, limit);
  problem.has_pairs = pairs_gain(problem);
  return problem;
}

}  // namespace dualpipe::detail::search
