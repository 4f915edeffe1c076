#include "dualpipe/sim/explain/measured_costs.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/explain/measured_passes.h"

namespace dualpipe {

using detail::explain::complete;
using detail::explain::Edge;
using detail::explain::Events;
using detail::explain::EventUnit;
using detail::explain::Index;
using detail::explain::median;
using detail::explain::medians;
using detail::explain::PassFigures;
using detail::explain::PassSamples;
using detail::explain::Reason;
using detail::explain::Samples;

namespace {

// Of each stage.
std::vector<PassFigures> times_of(const Program& program, const Events& events) {
  const Schedule& schedule = program.schedule;
  std::vector<PassSamples> samples(schedule.placement.rank_of.size());
  for (const EventUnit& unit : events.units()) {
    const Time time = unit.span.end - unit.span.start;
    const Op op = schedule.ops[unit.op];
    PassSamples& stage = samples[op.stage];
    (unit.is_pair ? stage.pair : stage.of(op.kind)).push_back(time);
    if (unit.is_pair) samples[schedule.ops[unit.op + 1].stage].pair_back.push_back(time);
  }
  std::vector<PassFigures> times(samples.size());
  std::ranges::transform(samples, times.begin(), medians);
  return times;
}

StageCosts costs_of(const PassFigures& times) {
  StageCosts costs;
  costs.forward = times.forward.value_or(0);
  costs.backward = times.backward.value_or(0);
  costs.input_gradient = times.input_gradient.value_or(0);
  costs.weight_gradient = times.weight_gradient.value_or(0);
  costs.overlapped = times.pair;
  return costs;
}

}  // namespace

MeasuredCosts measured_costs(const Program& program, const Timeline& timeline) {
  const Events events(program, timeline);
  MeasuredCosts result;
  std::vector<PassFigures> times = times_of(program, events);
  const bool in_halves = complete(times);
  std::ranges::transform(times, std::back_inserter(result.costs.stages), costs_of);
  Samples launches;
  Samples transfers;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr) continue;
    if (edge->reason == Reason::launch) launches.push_back(edge->weight);
    if (edge->reason != Reason::arrival) continue;
    const Span span = events.messages()[events[edge->from].subject].span;
    transfers.push_back(span.end - span.start);
  }
  result.costs.launch = median(std::move(launches)).value_or(0);
  result.costs.latency = median(std::move(transfers)).value_or(0);
  if (in_halves) result.remarks.emplace_back("B ran whole: I and W are taken for a half of it each");
  return result;
}

}  // namespace dualpipe
