#include "dualpipe/sim/explain/explain.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/explain/ideal.h"
#include "dualpipe/sim/explain/ready.h"
#include "dualpipe/sim/explain/walk.h"

namespace dualpipe {

using detail::explain::Edge;
using detail::explain::Event;
using detail::explain::Events;
using detail::explain::ideal_makespan;
using detail::explain::Index;
using detail::explain::none;
using detail::explain::ReadyTimes;
using detail::explain::Reason;
using detail::explain::Walk;

Time Causes::total() const { return std::accumulate(time.begin(), time.end(), Time{0}); }

Causes& Causes::operator+=(const Causes& other) {
  std::ranges::transform(time, other.time, time.begin(), std::plus{});
  return *this;
}

std::vector<Causes> causes_by_rank(const Explanation& explanation, int ranks) {
  std::vector<Causes> causes(static_cast<std::size_t>(ranks));
  for (const IdleSegment& segment : explanation.segments) {
    causes[static_cast<std::size_t>(segment.rank)].time[static_cast<std::size_t>(segment.cause)] +=
        segment.span.end - segment.span.start;
  }
  return causes;
}

namespace {

std::vector<PathStep> critical_path(const Program& program, const Events& events) {
  std::vector<PathStep> path;
  if (events.last_unit() == none) return path;
  Index event = Events::end_of(events.last_unit());
  for (const Edge* edge = events.binding(event); edge != nullptr; edge = events.binding(event)) {
    const Index to = std::exchange(event, edge->from);
    if (edge->weight == 0 && edge->reason != Reason::runs) continue;
    PathStep step;
    step.span = {events[edge->from].time, events[to].time};
    if (edge->reason == Reason::transfer) {
      const auto& message = events.messages()[events[to].subject];
      step.kind = PathStep::Kind::transfer;
      step.op = message.receive;
      step.rank = events.units()[message.producer].rank;
    } else {
      const auto& unit = events.units()[events[to].subject];
      step.kind = edge->reason == Reason::launch ? PathStep::Kind::launch : PathStep::Kind::op;
      step.op = program.schedule.ops[unit.op];
      step.rank = unit.rank;
    }
    path.push_back(step);
  }
  std::ranges::reverse(path);
  return path;
}

std::vector<Time> slack_of_ops(const Program& program, const Events& events) {
  const std::vector<Time> of_events = events.slack();
  std::vector<Time> slack(program.schedule.ops.size());
  for (Index unit = 0; unit < events.units().size(); ++unit) {
    const auto& each = events.units()[unit];
    for (std::size_t part = 0; part < (each.is_pair ? 2U : 1U); ++part) {
      slack[each.op + part] = of_events[Events::start_of(unit)];
    }
  }
  return slack;
}

// The windows of a rank: from the end of one unit to the start of the next, whose number stands with it.
template <typename Visit>
void for_each_window(const Events& events, int rank, Visit visit) {
  Time free = events.first_start();
  Index next = events.first_unit(rank);
  for (const auto& unit : events.units_on(rank)) {
    if (unit.span.start > free) visit(Span{free, unit.span.start}, next);
    free = unit.span.end;
    ++next;
  }
  if (free < events.last_end()) visit(Span{free, events.last_end()}, none);
}

Explanation explained(const Program& program, const Events& events, ReadyTimes& ready, bool releases_early) {
  Explanation explanation;
  if (events.last_unit() == none) return explanation;
  Walk walk(program, events);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    ready.go_to(rank);
    for_each_window(events, rank, [&](Span window, Index next) {
      const std::size_t first = explanation.segments.size();
      walk.back(rank, window, next, explanation.segments);
      std::reverse(explanation.segments.begin() + static_cast<std::ptrdiff_t>(first), explanation.segments.end());
      ready.classify(window, next, first, explanation.segments);
    });
  }
  explanation.path = critical_path(program, events);
  explanation.slack = slack_of_ops(program, events);
  explanation.ideal = ideal_makespan(program, events, releases_early);
  return explanation;
}

}  // namespace

Explanation explain(const Program& program, const Costs& costs, const Timeline& timeline,
                    const std::optional<MemoryLimit>& limit) {
  const Events events(program, costs, timeline);
  ReadyTimes ready(program, events);
  if (limit) ready.set_limit(costs, timeline, *limit);
  return explained(program, events, ready, costs.release_early);
}

Explanation explain_measured(const Program& program, const Timeline& timeline) {
  const Events events(program, timeline);
  ReadyTimes ready(program, events);
  return explained(program, events, ready, false);
}

}  // namespace dualpipe
