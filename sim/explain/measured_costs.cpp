#include "dualpipe/sim/explain/measured_costs.h"

#include <algorithm>
#include <array>
#include <utility>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/report/percentile.h"

namespace dualpipe {

using detail::explain::Edge;
using detail::explain::Events;
using detail::explain::EventUnit;
using detail::explain::Index;
using detail::explain::Reason;

namespace {

// Durations of a stage: F, B, I, W, and of pairs whose forward is the stage's.
using Durations = std::array<std::vector<Time>, 5>;

Time median_of(std::vector<Time> times) { return times.empty() ? 0 : detail::report::median(std::move(times)); }

std::vector<Durations> durations_of(const Program& program, const Events& events) {
  std::vector<Durations> stages(program.schedule.placement.rank_of.size());
  for (const EventUnit& unit : events.units()) {
    const Op op = program.schedule.ops[unit.op];
    const bool is_second = unit.is_pair && op.kind != Kind::forward;
    const std::size_t stage = is_second ? program.schedule.ops[unit.op + 1].stage : op.stage;
    stages[stage][unit.is_pair ? 4 : static_cast<std::size_t>(op.kind)].push_back(unit.span.end - unit.span.start);
  }
  return stages;
}

StageCosts costs_of(const Durations& durations, bool& halves) {
  StageCosts costs;
  costs.forward = median_of(durations[0]);
  costs.input_gradient = median_of(durations[2]);
  costs.weight_gradient = median_of(durations[3]);
  costs.backward = median_of(durations[1]);
  if (durations[1].empty()) costs.backward = costs.input_gradient + costs.weight_gradient;
  if (durations[2].empty() && durations[3].empty()) {
    halves = halves || costs.backward > 0;
    costs.weight_gradient = costs.backward / 2;
    costs.input_gradient = costs.backward - costs.weight_gradient;
  }
  if (!durations[4].empty()) costs.overlapped = median_of(durations[4]);
  return costs;
}

}  // namespace

MeasuredCosts measured_costs(const Program& program, const Timeline& timeline) {
  const Events events(program, timeline);
  MeasuredCosts result;
  bool halves = false;
  for (const Durations& stage : durations_of(program, events)) result.costs.stages.push_back(costs_of(stage, halves));
  std::vector<Time> launches;
  std::vector<Time> transfers;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr) continue;
    if (edge->reason == Reason::launch) launches.push_back(edge->weight);
    if (edge->reason != Reason::arrival) continue;
    const Span span = events.messages()[events[edge->from].subject].span;
    transfers.push_back(span.end - span.start);
  }
  result.costs.launch = median_of(std::move(launches));
  result.costs.latency = median_of(std::move(transfers));
  if (halves) result.remarks.emplace_back("B ran whole: I and W are taken for a half of it each");
  return result;
}

}  // namespace dualpipe
