#include "dualpipe/sim/explain/measured_costs.h"

#include <algorithm>
#include <iterator>
#include <span>
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
using detail::explain::none;
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

// From the end of an op to the start of one on another rank that waited for its result last.
Samples transfers_of(const Events& events) {
  Samples transfers;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr || edge->reason != Reason::arrival) continue;
    const Span span = events.messages()[events[edge->from].subject].span;
    transfers.push_back(span.end - span.start);
  }
  return transfers;
}

// Between two ops of a rank, where the second had its inputs: one that was made less than a message's way before the
// first one's end may have been on its way still.
Samples launches_of(const Program& program, const Events& events, Time latency) {
  Samples launches;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr || edge->reason != Reason::launch) continue;
    const EventUnit& each = events.units()[unit];
    const auto ops = std::span(program.schedule.ops).subspan(each.op, each.is_pair ? 2 : 1);
    const bool has_inputs = std::ranges::all_of(ops, [&](Op op) {
      const Index message = events.message_to(op);
      if (message == none) return true;
      return events.units()[events.messages()[message].producer].span.end + latency < events[edge->from].time;
    });
    if (has_inputs) launches.push_back(edge->weight);
  }
  return launches;
}

}  // namespace

MeasuredCosts measured_costs(const Program& program, const Timeline& timeline) {
  const Events events(program, timeline);
  MeasuredCosts result;
  std::vector<PassFigures> times = times_of(program, events);
  const bool in_halves = complete(times);
  std::ranges::transform(times, std::back_inserter(result.costs.stages), costs_of);
  result.costs.latency = median(transfers_of(events)).value_or(0);
  result.costs.launch = median(launches_of(program, events, result.costs.latency)).value_or(0);
  if (in_halves) result.remarks.emplace_back("B ran whole: I and W are taken for a half of it each");
  return result;
}

}  // namespace dualpipe
