#include "dualpipe/sim/explain/what_if.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <set>
#include <string_view>
#include <utility>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/explain/cells.h"
#include "dualpipe/sim/explain/earlier.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/generate/check_shape.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe {

using detail::explain::Cells;
using detail::explain::with_earlier_receives;

namespace {

constexpr std::array<std::string_view, 5> pass_names = {"F", "B", "I", "W", "F&B"};
constexpr std::size_t pair_class = 4;

// A change, and the run that it makes.
struct Candidate {
  std::string change;
  std::function<Timeline()> run;
  std::uint64_t micro_batches = 0;
};

Time tenth_less(Time time) { return (time * 9 + 5) / 10; }

// What an op of a pass takes, with what it recomputes.
void make_faster(StageCosts& stage, std::size_t pass) {
  switch (pass) {
    case 0:
      stage.forward = tenth_less(stage.forward);
      return;
    case 1:
      stage.backward = tenth_less(stage.backward);
      stage.recompute = tenth_less(stage.recompute);
      return;
    case 2:
      stage.input_gradient = tenth_less(stage.input_gradient);
      stage.recompute = tenth_less(stage.recompute);
      return;
    case 3:
      stage.weight_gradient = tenth_less(stage.weight_gradient);
      return;
    default:
      if (stage.overlapped) stage.overlapped = tenth_less(*stage.overlapped);
  }
}

class Candidates {
 public:
  explicit Candidates(const WhatIfBase& base) : base_(base), costs_(base.costs) {
    const Placement& placement = base.program.schedule.placement;
    if (costs_.stages.size() == 1) costs_.stages.resize(placement.rank_of.size(), base.costs.stages[0]);
  }

  [[nodiscard]] std::vector<Candidate> all() && {
    add_faster_passes();
    add_machine();
    add_program();
    add_cuts();
    add_micro_batch();
    add_slower_ranks();
    add_schedules();
    return std::move(candidates_);
  }

 private:
  [[nodiscard]] const Schedule& schedule() const { return base_.program.schedule; }

  void add(std::string change, Costs costs) {
    candidates_.push_back({std::move(change),
                           [this_program = &base_.program, costs = std::move(costs)] {
                             return simulate(*this_program, costs, Record::ranks);
                           },
                           schedule().total_micro_batches()});
  }

  // By stage, the passes whose durations the critical path is made of.
  [[nodiscard]] std::vector<std::set<std::size_t>> passes_on_path() const {
    std::vector<std::set<std::size_t>> passes(costs_.stages.size());
    const Cells cells(base_.program);
    for (const PathStep& step : base_.explanation.path) {
      if (step.kind != PathStep::Kind::op) continue;
      const auto second = cells.second(step.op);
      if (!second || costs_.release_early) passes[step.op.stage].insert(static_cast<std::size_t>(step.op.kind));
      if (!second) continue;
      passes[second->stage].insert(static_cast<std::size_t>(second->kind));
      passes[step.op.stage].insert(costs_.stages[step.op.stage].overlapped ? pair_class
                                                                           : static_cast<std::size_t>(step.op.kind));
    }
    return passes;
  }

  void add_faster_passes() {
    const auto passes = passes_on_path();
    for (std::size_t pass = 0; pass < pass_names.size(); ++pass) {
      std::vector<std::size_t> stages;
      for (std::size_t stage = 0; stage < passes.size(); ++stage) {
        if (passes[stage].contains(pass)) stages.push_back(stage);
      }
      if (stages.empty()) continue;
      Costs all = costs_;
      for (StageCosts& stage : all.stages) make_faster(stage, pass);
      add(fmt::format("{} of all stages 10 % faster", pass_names[pass]), std::move(all));
      for (const std::size_t stage : stages) {
        Costs one = costs_;
        make_faster(one.stages[stage], pass);
        add(fmt::format("{} of stage {} 10 % faster", pass_names[pass], stage), std::move(one));
      }
    }
  }

  void add_machine() {
    const auto with = [&](std::string_view change, auto set) {
      Costs costs = costs_;
      set(costs);
      add(std::string(change), std::move(costs));
    };
    if (costs_.latency > 1) with("half the latency", [](Costs& costs) { costs.latency /= 2; });
    const bool has_bytes =
        std::ranges::any_of(costs_.stages, [](const StageCosts& stage) { return stage.message > 0; });
    if (costs_.model != CommunicationModel::latency && costs_.bandwidth > 0 && has_bytes) {
      with("twice the bandwidth", [](Costs& costs) { costs.bandwidth *= 2; });
    }
    if (costs_.launch > 1) with("half the launch overhead", [](Costs& costs) { costs.launch /= 2; });
    if (has_pairs(schedule()) && !costs_.release_early && costs_.model != CommunicationModel::stream) {
      with("results of pairs released early", [](Costs& costs) { costs.release_early = true; });
    }
  }

  void add_program() {
    if (costs_.model != CommunicationModel::stream) return;
    candidates_.push_back(
        {"receives posted an op earlier",
         [this] { return simulate(with_earlier_receives(base_.program), base_.costs, Record::ranks); },
         schedule().total_micro_batches()});
  }

  void add_cuts() {
    const auto* model = std::get_if<ModelCosts>(&base_.given);
    if (model == nullptr) return;
    const std::vector<int> cut = cut_of(*model, schedule().placement);
    for (std::size_t stage = 0; stage + 1 < cut.size(); ++stage) {
      for (const auto& [to, from] : {std::pair(stage, stage + 1), std::pair(stage + 1, stage)}) {
        if (cut[from] < 2) continue;
        ModelCosts moved = *model;
        moved.cut = cut;
        ++moved.cut[to];
        --moved.cut[from];
        Costs costs = stage_costs(moved, schedule().placement);
        static_cast<MachineCosts&>(costs) = costs_;
        add(fmt::format("a part of stage {} moved to stage {}", from, to), std::move(costs));
      }
    }
  }

  void add_micro_batch() {
    if (!base_.shape) return;
    Shape shape = *base_.shape;
    for (int more = 1; more <= schedule().ranks(); ++more) {
      ++shape.micro_batches;
      if (!fits(schedule().name, shape)) continue;
      add_request(fmt::format("{} more micro-batch{}", more, more == 1 ? "" : "es"),
                  {schedule().name, shape, base_.given, base_.memory_limit});
      return;
    }
  }

  void add_slower_ranks() {
    for (int rank = 0; rank < schedule().ranks(); ++rank) {
      Costs costs = costs_;
      if (costs.speed.empty()) costs.speed.assign(static_cast<std::size_t>(schedule().ranks()), 1);
      costs.speed[static_cast<std::size_t>(rank)] /= 1.05;
      add(fmt::format("rank {} 5 % slower", rank), std::move(costs));
    }
  }

  void add_schedules() {
    for (const Family& family : catalog()) {
      if (family.name == schedule().name) continue;
      Shape shape;
      shape.ranks = schedule().ranks();
      shape.micro_batches = static_cast<std::int64_t>(schedule().total_micro_batches());
      if (family.takes_chunks) shape.chunks = 2;
      if (!fits(family.name, shape)) continue;
      const bool has_same_stages = family.placement(shape).rank_of == schedule().placement.rank_of;
      const GivenCosts given = has_same_stages ? base_.given : GivenCosts(of_model(base_.given, shape.ranks));
      add_request(fmt::format("as {}", family.name), {std::string(family.name), shape, given, base_.memory_limit});
    }
  }

  [[nodiscard]] static bool fits(std::string_view name, const Shape& shape) {
    try {
      detail::generate::check_shape(family(name), shape);
    } catch (const ShapeError&) {
      return false;
    }
    return true;
  }

  // Of the makespan alone: its memory is looked at where there is a limit.
  void add_request(std::string change, Request request) {
    const auto micro_batches = static_cast<std::uint64_t>(request.shape.micro_batches);
    candidates_.push_back({std::move(change),
                           [request = std::move(request), machine = static_cast<const MachineCosts&>(costs_)] {
                             const Program program = lower(generate(request));
                             Costs costs = stage_costs(request.costs, program.schedule.placement);
                             static_cast<MachineCosts&>(costs) = machine;
                             if (request.memory_limit) check_memory_limit(program, costs, *request.memory_limit);
                             return simulate(program, costs, Record::ranks);
                           },
                           micro_batches});
  }

  const WhatIfBase& base_;
  Costs costs_;  // an entry for each stage
  std::vector<Candidate> candidates_;
};

// Of a run of so many micro-batches.
double gain_of(Time makespan, std::uint64_t micro_batches, Time before, std::uint64_t micro_batches_before) {
  if (before == 0) return 0;
  return 1 - static_cast<double>(makespan) / static_cast<double>(before) * static_cast<double>(micro_batches_before) /
                 static_cast<double>(micro_batches);
}

}  // namespace

std::vector<WhatIf> what_if(const WhatIfBase& base, unsigned threads) {
  const auto& path = base.explanation.path;
  const Time before = path.empty() ? 0 : path.back().span.end - path.front().span.start;
  const std::uint64_t micro_batches = base.program.schedule.total_micro_batches();
  Candidates made(base);
  const std::vector<Candidate> candidates = std::move(made).all();
  std::vector<WhatIf> answers;
  evaluate_each(
      candidates.size(),
      [&](std::size_t i) {
        return Evaluation{0, candidates[i].run(), {}};
      },
      [&](std::size_t i, const Outcome& outcome) {
        if (!outcome.succeeded()) return;
        const Time makespan = outcome.evaluation().timeline.makespan();
        const double gain = gain_of(makespan, candidates[i].micro_batches, before, micro_batches);
        answers.push_back({candidates[i].change, makespan, gain});
      },
      threads);
  std::ranges::stable_sort(answers, std::ranges::greater{}, &WhatIf::gain);
  return answers;
}

}  // namespace dualpipe
