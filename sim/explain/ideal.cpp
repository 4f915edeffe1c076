#include "dualpipe/sim/explain/ideal.h"

#include <algorithm>
#include <array>
#include <limits>

namespace dualpipe::detail::explain {
namespace {

constexpr Time unknown = std::numeric_limits<Time>::max();

// Of one stage.
struct Shortest {
  Time forward = unknown;
  Time backward = unknown;         // B or I
  Time to_next = unknown;          // of its output; unknown where no message carries it
  Time to_previous = unknown;      // of the gradient of its input
  bool ends_with_weights = false;  // its backward is split
};

Time or_nothing(Time time) { return time == unknown ? 0 : time; }

std::vector<Shortest> shortest_of_stages(const Program& program, const Events& events, bool releases_early) {
  std::vector<Shortest> stages(program.schedule.placement.rank_of.size());
  for (const EventUnit& unit : events.units()) {
    for (std::size_t part = 0; part < (unit.is_pair ? 2U : 1U); ++part) {
      const Op op = program.schedule.ops[unit.op + part];
      Shortest& stage = stages[op.stage];
      const Time duration = unit.is_pair && releases_early ? 0 : unit.span.end - unit.span.start;
      if (op.kind == Kind::forward) stage.forward = std::min(stage.forward, duration);
      if (is_backward_half(op.kind)) stage.backward = std::min(stage.backward, duration);
      if (op.kind == Kind::weight_gradient) stage.ends_with_weights = true;
    }
  }
  for (const EventMessage& message : events.messages()) {
    const auto from = other_end_of(message.receive, program.schedule.placement);
    Shortest& stage = stages[from->stage];
    Time& way = message.receive.kind == Kind::receive_forward ? stage.to_next : stage.to_previous;
    way = std::min(way, message.span.end - message.span.start);
  }
  return stages;
}

}  // namespace

Time ideal_makespan(const Program& program, const Events& events, bool releases_early) {
  const Placement& placement = program.schedule.placement;
  const auto stages = shortest_of_stages(program, events, releases_early);
  const bool trains = std::ranges::any_of(stages, [](const Shortest& each) { return each.backward != unknown; });
  std::vector<Time> head(stages.size());
  std::vector<Time> tail(stages.size());
  for (std::size_t s = 0; s < stages.size(); ++s) {
    const auto previous = placement.previous(static_cast<int>(s));
    if (!previous) continue;
    head[s] = head[s - 1] + or_nothing(stages[s - 1].forward) + or_nothing(stages[s - 1].to_next);
    if (stages[s].ends_with_weights) continue;
    tail[s] = or_nothing(stages[s].to_previous) + or_nothing(stages[s - 1].backward) + tail[s - 1];
  }
  for (std::size_t s = stages.size(); s-- > 0 && !trains;) {
    const auto next = placement.next(static_cast<int>(s));
    tail[s] = next ? or_nothing(stages[s].to_next) + or_nothing(stages[s + 1].forward) + tail[s + 1] : 0;
  }
  Time ideal = 0;
  for (int rank = 0; rank < placement.ranks; ++rank) {
    const auto units = events.units_on(rank);
    if (units.empty()) continue;
    Time load = 0;
    for (const EventUnit& unit : units) load += unit.span.end - unit.span.start;
    Time first = unknown;
    Time last = unknown;
    for (const int stage : placement.stages_on(rank)) {
      first = std::min(first, head[static_cast<std::size_t>(stage)]);
      last = std::min(last, tail[static_cast<std::size_t>(stage)]);
    }
    ideal = std::max(ideal, or_nothing(first) + load + or_nothing(last));
  }
  return ideal;
}

}  // namespace dualpipe::detail::explain
