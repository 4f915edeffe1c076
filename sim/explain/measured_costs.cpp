#include "dualpipe/sim/explain/measured_costs.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>
#include <utility>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/explain/measured_passes.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe {

using detail::explain::complete;
using detail::explain::durations_of;
using detail::explain::Edge;
using detail::explain::Event;
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

// From the end of an op to the arrival of its result at one on another rank that waited for it last, less what its
// bytes take.
Samples latencies_of(const Program& program, const Events& events, const Costs& costs) {
  const Placement& placement = program.schedule.placement;
  Samples latencies;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr || events[edge->from].kind != Event::Kind::message_end) continue;
    const auto& message = events.messages()[events[edge->from].subject];
    const auto bytes = static_cast<double>(costs.of(output_stage_of(message.receive, placement)).message);
    const double transfer = costs.bandwidth > 0 ? bytes * 1e9 / costs.bandwidth : 0;
    latencies.push_back(std::max<Time>(0, message.span.end - message.span.start - std::llround(transfer)));
  }
  return latencies;
}

// The sizes of messages, and the bandwidth.
void add_messages(const Placement& placement, std::span<const MeasuredMessage> messages, Costs& costs) {
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto next = placement.next(stage);
    if (!next) continue;
    const auto rank_of = [&](int of) { return int{placement.rank_of[static_cast<std::size_t>(of)]}; };
    Samples sizes;
    for (const MeasuredMessage& each : messages) {
      if (each.from == rank_of(stage) && each.to == rank_of(*next) && each.bytes > 0) sizes.push_back(each.bytes);
    }
    costs.stages[static_cast<std::size_t>(stage)].message = median(std::move(sizes)).value_or(0);
  }
  costs.bandwidth = bandwidth_of(times_by_size(messages));
  if (costs.bandwidth > 0) costs.model = CommunicationModel::links;
}

// Between two ops of a rank, where the second had its inputs: one that was made less than a message's way before the
// first one's end may have been on its way still.
Samples launches_of(const Program& program, const Events& events, Time latency) {
  Samples launches;
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const Edge* edge = events.binding(Events::start_of(unit));
    if (edge == nullptr || edge->reason != Reason::launch) continue;
    if (events.knows_arrivals()) {
      launches.push_back(edge->weight);
      continue;
    }
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

MeasuredCosts measured_costs(const Program& program, const Timeline& timeline,
                             std::span<const MeasuredMessage> messages) {
  const Events events(program, timeline);
  MeasuredCosts result;
  std::vector<PassFigures> times = times_of(program, events);
  const bool in_halves = complete(times);
  std::ranges::transform(times, std::back_inserter(result.costs.stages), durations_of);
  add_messages(program.schedule.placement, messages, result.costs);
  result.costs.latency = median(latencies_of(program, events, result.costs)).value_or(0);
  result.costs.launch = median(launches_of(program, events, result.costs.latency)).value_or(0);
  if (in_halves) result.remarks.emplace_back("B ran whole: I and W are taken for a half of it each");
  return result;
}

}  // namespace dualpipe
