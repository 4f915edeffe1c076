#include "dualpipe/sim/evaluate/evaluate.h"

#include <algorithm>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe {
namespace {

Time largest_idle(const Timeline& timeline, Time cost) {
  return cost - std::ranges::min_element(timeline.ranks, {}, &RankTimes::busy)->busy;
}

template <typename Figure>
auto largest(const std::vector<RankMemory>& memory, Figure figure) {
  return (*std::ranges::max_element(memory, {}, figure)).*figure;
}

Outcome outcome_of(const std::function<Evaluation(std::size_t)>& evaluate_one, std::size_t candidate) {
  try {
    return Outcome(evaluate_one(candidate));
  } catch (...) {
    return Outcome(std::current_exception());
  }
}

}  // namespace

Time Evaluation::bubble_by_makespan() const { return largest_idle(timeline, timeline.makespan()); }
Time Evaluation::bubble_by_span() const { return largest_idle(timeline, timeline.span()); }
int Evaluation::peak_activations_least() const {
  return std::ranges::min_element(memory, {}, &RankMemory::peak_activations)->peak_activations;
}
int Evaluation::peak_activations_most() const { return largest(memory, &RankMemory::peak_activations); }
Bytes Evaluation::peak_memory() const { return largest(memory, &RankMemory::peak); }
int Evaluation::parameters() const { return largest(memory, &RankMemory::parameters); }

Evaluation evaluate(const Request& request) {
  Schedule schedule = generate(request);
  const Costs costs = stage_costs(request.costs, schedule.placement);
  return evaluate(std::move(schedule), costs);
}

Evaluation evaluate(Schedule schedule, const Costs& costs) { return evaluate(lower(std::move(schedule)), costs); }

Evaluation evaluate(const Program& program, const Costs& costs) {
  Evaluation evaluation;
  evaluation.stages = program.schedule.placement.stages();
  evaluation.timeline = simulate(program, costs, Record::ranks);
  evaluation.memory = memory_of_ranks(program, costs);
  return evaluation;
}

std::vector<Outcome> evaluate_all(std::span<const Request> requests, unsigned threads) {
  std::vector<Outcome> outcomes;
  outcomes.reserve(requests.size());
  evaluate_each(
      requests.size(), [&](std::size_t i) { return evaluate(requests[i]); },
      [&](std::size_t, Outcome outcome) { outcomes.push_back(std::move(outcome)); }, threads);
  return outcomes;
}

void evaluate_each(std::size_t count, const std::function<Evaluation(std::size_t)>& evaluate_one,
                   const std::function<void(std::size_t, Outcome)>& take, unsigned threads) {
  detail::evaluate::in_order<Outcome>(
      count, threads, [&](std::size_t i) { return outcome_of(evaluate_one, i); }, take);
}

}  // namespace dualpipe
