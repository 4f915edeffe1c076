#include "dualpipe/sim/report/table.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>
#include <variant>

#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/generate/check_shape.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/search/bounds.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe {
namespace {

constexpr std::string_view baseline = "1f1b";

// What a row is made of.
struct Candidate {
  const TableSchedule* schedule;
  Shape shape;  // of a family
  std::optional<Recomputation> recompute;
  std::size_t group;  // with those of the same ranks and micro-batches
  bool is_shown;      // else it is there to be compared with
  TableRow row = {};
  std::string reason = {};       // why it has no row
  std::vector<Time> drawn = {};  // makespans, by seed
};

// Of so many ranks.
GivenCosts costs_of(const TableRequest& request, int ranks, std::optional<Recomputation> recompute) {
  GivenCosts costs = request.costs;
  if (recompute == Recomputation::none) {
    for (StageCosts& each : entries_of(costs)) each = without_recompute(each);
  }
  if (request.terms == EqualTerms::stages) return costs;
  return of_model(costs, ranks);
}

// How many stages of one chain a rank holds: what divides the ranks when the number of stages is to be equal.
int stages_of_chain_per_rank(const Family& family, const Shape& shape) {
  return family.stages_per_rank(shape) / family.chains(shape);
}

Shape shape_of_row(const Family& family, Shape shape, EqualTerms terms) {
  shape = as_taken_by(family, shape);
  detail::generate::check_counts(family, shape);
  const int per_rank = stages_of_chain_per_rank(family, shape);
  if (terms == EqualTerms::stages) {
    if (shape.ranks % per_rank != 0) {
      const int fewer = shape.ranks / per_rank * per_rank;
      throw ShapeError(fmt::format("{}: {} stages cannot be {} on every rank; nearest that work: {}{} stages",
                                   family.name, shape.ranks, per_rank, fewer > 0 ? fmt::format("{} or ", fewer) : "",
                                   fewer + per_rank));
    }
    shape.ranks /= per_rank;
  }
  return shape;
}

// Makespans by seed.
std::vector<Time> draw(const Program& program, const Costs& costs, const TableRequest& request) {
  const auto ranks = static_cast<std::size_t>(program.schedule.ranks());
  std::vector<Time> makespans;
  for (int i = 0; i < request.seeds; ++i) {
    Costs drawn = costs;
    drawn.seed = costs.seed + static_cast<std::uint64_t>(i);
    if (request.straggler) {
      drawn.speed.resize(ranks, 1);
      drawn.speed[straggler_of(drawn.seed, ranks)] *= *request.straggler;
    }
    makespans.push_back(simulate(program, drawn, Record::ranks).makespan());
  }
  return makespans;
}

void fill_work(TableRow& row, const Timeline& timeline) {
  double busy = 0;
  Time most = 0;
  for (const RankTimes& rank : timeline.ranks) {
    busy += static_cast<double>(rank.busy);
    most = std::max(most, rank.busy);
  }
  const auto ranks = static_cast<double>(timeline.ranks.size());
  const auto makespan = static_cast<double>(row.makespan);
  if (row.makespan > 0) row.imbalance_rate = (static_cast<double>(most) - busy / ranks) / makespan;
  if (busy > 0) row.idle_per_ideal = (makespan * ranks - busy) / busy;
}

// Per second, over the whole run.
void fill_rates(TableRow& row, const TableRequest& request) {
  const double seconds = static_cast<double>(row.time()) * 1e-9;
  if (seconds <= 0) return;
  const auto micro_batches = static_cast<double>(row.micro_batches);
  if (request.tokens) row.tokens_per_second = *request.tokens * micro_batches / seconds;
  if (request.flops && request.peak_flops) {
    row.flops_utilization = *request.flops * micro_batches / (seconds * row.ranks * *request.peak_flops);
  }
}

// With what the row itself holds at its peak, by activations.
std::optional<Time> lower_bound_of(const TableRow& row, const Program& program, const Costs& costs) {
  if (costs.jitter > 0 || (row.overlapped_is_assumed && costs.launch > 0)) return std::nullopt;
  const auto needed = memory_needed(program, costs, MemoryLimit::Unit::micro_batches);
  const MemoryLimit most = *std::ranges::max_element(needed, {}, &MemoryLimit::amount);
  return lower_bounds(program.schedule.placement, program.schedule.micro_batches, costs, most).makespan;
}

// All that a row says but what it takes other rows to know.
Evaluation evaluate_program(Candidate& candidate, const TableRequest& request, const Program& program,
                            const Costs& costs) {
  TableRow& row = candidate.row;
  const Placement& placement = program.schedule.placement;
  Evaluation evaluation = evaluate(program, costs);
  row.ranks = placement.ranks;
  row.micro_batches = static_cast<std::int64_t>(program.schedule.total_micro_batches());
  row.stages = evaluation.stages;
  row.has_pairs = has_pairs(program.schedule);
  row.overlapped_is_assumed = row.has_pairs && !has_overlapped(costs);
  row.makespan = evaluation.timeline.makespan();
  row.span = evaluation.timeline.span();
  row.bubble = row.form && row.form->by_span ? evaluation.bubble_by_span() : evaluation.bubble_by_makespan();
  row.bubble_rate_makespan = evaluation.timeline.bubble_rate_makespan();
  row.bubble_rate_span = evaluation.timeline.bubble_rate_span();
  row.peak_activations_least = evaluation.peak_activations_least();
  row.peak_activations_most = evaluation.peak_activations_most();
  row.parameters = evaluation.parameters();
  if (request.terms == EqualTerms::ranks) {
    row.share = static_cast<double>(row.ranks) * placement.chains() / placement.stages();
  }
  row.peak_memory = evaluation.peak_memory();
  row.lower_bound = lower_bound_of(row, program, costs);
  if (request.memory_limit) row.room = *request.memory_limit - row.peak_memory;
  if (request.seeds > 0) {
    candidate.drawn = draw(program, costs, request);
    row.makespans = quantiles_of(candidate.drawn);
  }
  fill_work(row, evaluation.timeline);
  fill_rates(row, request);
  return evaluation;
}

// Where no order of an automatic schedule keeps the limit, the row has the one that comes nearest, and does not fit.
Schedule nearest_to_limit(Request request) {
  try {
    return generate(request);
  } catch (const MemoryLimitError& error) {
    request.memory_limit = error.least();
  }
  return generate(request);
}

Evaluation evaluate_candidate(Candidate& candidate, const TableRequest& request) {
  TableRow& row = candidate.row;
  row.recompute = candidate.recompute;
  if (const auto& program = candidate.schedule->program) {
    const Placement& placement = program->schedule.placement;
    const GivenCosts costs = costs_of(request, placement.ranks, candidate.recompute);
    return evaluate_program(candidate, request, *program, stage_costs(costs, placement));
  }
  const std::string& name = candidate.schedule->name;
  const Shape shape = shape_of_row(family(name), candidate.shape, request.terms);
  const GivenCosts given = costs_of(request, shape.ranks, candidate.recompute);
  Schedule schedule =
      nearest_to_limit({.family = name, .shape = shape, .costs = given, .memory_limit = request.memory_limit});
  const Costs costs = stage_costs(given, schedule.placement);
  row.form = closed_form(name, shape, costs);
  return evaluate_program(candidate, request, lower(std::move(schedule)), costs);
}

void check_request(const TableRequest& request) {
  std::visit([](const auto& costs) { check(costs); }, request.costs);
  if (request.seeds > 0 && machine_of(request.costs).jitter == 0 && !request.straggler) {
    throw InputError("several seeds need jitter, by which the runs differ: give its share (--jitter 0.05)");
  }
  if (request.straggler && !detail::costs::is_speed(*request.straggler)) {
    throw InputError(fmt::format("the straggler: {}; {} is not", detail::costs::speed_rule, *request.straggler));
  }
  const auto entries = entries_of(request.costs);
  if (request.memory_limit && std::ranges::none_of(entries, detail::costs::counts_bytes)) {
    throw InputError(
        "a memory limit needs the bytes that it limits: give those of a micro-batch (--activation-bytes, …) or a costs "
        "file that has them");
  }
  if (!request.recompute.empty() && !knows_both_recomputes(entries)) {
    throw InputError(
        "to choose whether to recompute, the costs must know both: recompute_ns, and recompute_activation_bytes beside "
        "activation_bytes (--recompute-time, --recompute-activation-bytes)");
  }
}

// Rows that can be compared stand together.
class Candidates {
 public:
  explicit Candidates(const TableRequest& request) {
    for (const Recomputation each : request.recompute) recompute_.emplace_back(each);
    if (recompute_.empty() && knows_both_recomputes(entries_of(request.costs))) {
      recompute_ = {Recomputation::none, Recomputation::full};
    }
    if (recompute_.empty()) recompute_.emplace_back();
    for (const int ranks : request.ranks) {
      for (const std::int64_t micro_batches : request.micro_batches) {
        for (const TableSchedule& each : request.schedules) {
          Shape shape = request.parameters;
          shape.ranks = ranks;
          shape.micro_batches = micro_batches;
          if (!each.program) add(each, shape, true);
        }
      }
    }
    for (const TableSchedule& each : request.schedules) {
      if (!each.program) continue;
      const Schedule& schedule = each.program->schedule;
      add(each, {schedule.placement.ranks, static_cast<std::int64_t>(schedule.total_micro_batches())}, true);
    }
    for (std::size_t group = 0; group < groups_.size(); ++group) add_baseline(group);
  }

  [[nodiscard]] std::vector<Candidate> take() { return std::move(all_); }

 private:
  void add(const TableSchedule& schedule, const Shape& shape, bool is_shown) {
    const std::pair key{shape.ranks, shape.micro_batches};
    const auto found = std::ranges::find(groups_, key);
    const auto group = static_cast<std::size_t>(found - groups_.begin());
    if (found == groups_.end()) groups_.push_back(key);
    for (const auto& recompute : recompute_) {
      all_.push_back({&schedule, shape, recompute, group, is_shown});
      if (!is_shown) break;
    }
  }

  void add_baseline(std::size_t group) {
    const auto is_baseline = [&](const Candidate& each) {
      return each.group == group && !each.schedule->program && each.schedule->name == baseline;
    };
    if (std::ranges::any_of(all_, is_baseline)) return;
    static const TableSchedule one_f_one_b{std::string(baseline), std::nullopt};
    add(one_f_one_b, {groups_[group].first, groups_[group].second}, false);
  }

  std::vector<std::optional<Recomputation>> recompute_;
  std::vector<std::pair<int, std::int64_t>> groups_;
  std::vector<Candidate> all_;
};

// Within each group: what takes all of it to know.
void compare_group(std::span<Candidate> group, EqualTerms terms) {
  const auto base = std::ranges::find_if(group, [](const Candidate& each) {
    return each.reason.empty() && !each.schedule->program && each.schedule->name == baseline;
  });
  Candidate* best = nullptr;
  std::size_t shown = 0;
  for (Candidate& each : group) {
    if (!each.reason.empty()) continue;
    if (base != group.end() && each.row.time() > 0) {
      each.row.speedup = static_cast<double>(base->row.time()) / static_cast<double>(each.row.time());
    }
    if (!each.is_shown) continue;
    ++shown;
    if (each.row.fits() && (best == nullptr || each.row.time() < best->row.time())) best = &each;
  }
  if (best != nullptr && shown > 1 && terms == EqualTerms::ranks) best->row.is_best = true;
}

// Of each seed the shortest of those that are shown and fit.
void count_wins(std::span<Candidate> group) {
  std::vector<Candidate*> compared;
  for (Candidate& each : group) {
    if (each.is_shown && each.reason.empty() && each.row.fits()) compared.push_back(&each);
    if (each.is_shown && each.reason.empty()) each.row.win_rate = 0;
  }
  std::vector<std::span<const Time>> drawn;
  for (const Candidate* each : compared) drawn.emplace_back(each->drawn);
  const std::vector<double> rates = win_rates(drawn);
  for (std::size_t i = 0; i < compared.size(); ++i) compared[i]->row.win_rate = rates[i];
}

void sort_group(std::span<Candidate> group, TableSort by) {
  const auto sort = [&](auto key) {
    std::ranges::stable_sort(group, {}, [&](const Candidate& c) { return key(c.row); });
  };
  if (by == TableSort::makespan) sort([](const TableRow& row) { return row.time(); });
  if (by == TableSort::bubble) sort([](const TableRow& row) { return row.bubble_rate_makespan; });
  if (by == TableSort::memory) sort([](const TableRow& row) { return row.peak_memory; });
}

[[noreturn]] void refuse_all(const std::vector<LeftOut>& left_out) {
  std::string reasons;
  std::set<std::string_view> said;
  for (const LeftOut& each : left_out) {
    if (said.insert(each.reason).second) reasons += "\n  " + each.reason;
  }
  throw InputError("no schedule can be compared:" + reasons);
}

}  // namespace

std::vector<std::string> default_schedules(EqualTerms terms) {
  std::vector<std::string> names;
  for (const Family& family : catalog()) {
    if (terms == EqualTerms::ranks || family.is_in_first_table) names.emplace_back(family.name);
  }
  return names;
}

ScheduleTable schedule_table(TableRequest request) {
  check_request(request);
  if (request.schedules.empty()) {
    for (std::string& name : default_schedules(request.terms)) {
      request.schedules.push_back({std::move(name), std::nullopt});
    }
  }
  for (const TableSchedule& each : request.schedules) {
    if (!each.program) (void)family(each.name);
  }
  ScheduleTable table{std::move(request), {}, {}};
  std::vector<Candidate> candidates = Candidates(table.request).take();
  const auto evaluate_one = [&](std::size_t i) { return evaluate_candidate(candidates[i], table.request); };
  evaluate_each(candidates.size(), evaluate_one, [&](std::size_t i, const Outcome& outcome) {
    try {
      (void)outcome.evaluation();
    } catch (const ShapeError& error) {
      candidates[i].reason = error.what();
    } catch (const DeadlockError&) {
      candidates[i].reason = fmt::format("{}: it hangs under this communication; dualpipe-sim validate shows where",
                                         candidates[i].schedule->name);
    }
  });
  std::ranges::stable_sort(candidates, {}, &Candidate::group);
  for (auto begin = candidates.begin(); begin != candidates.end();) {
    const auto end = std::find_if(begin, candidates.end(), [&](const Candidate& c) { return c.group != begin->group; });
    compare_group({begin, end}, table.request.terms);
    if (table.request.seeds > 0) count_wins({begin, end});
    sort_group({begin, end}, table.request.sort);
    begin = end;
  }
  for (Candidate& each : candidates) {
    if (!each.is_shown) continue;
    each.row.schedule = each.schedule->name;
    if (each.reason.empty()) {
      table.rows.push_back(std::move(each.row));
    } else if (each.recompute != Recomputation::full) {  // said once
      table.left_out.push_back({each.schedule->name, each.shape.ranks, each.shape.micro_batches, each.reason});
    }
  }
  if (table.rows.empty()) refuse_all(table.left_out);
  return table;
}

}  // namespace dualpipe
