#include "dualpipe/sim/explain/walk.h"

#include <algorithm>

#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/report/units.h"

namespace dualpipe::detail::explain {
namespace {

std::size_t class_of_unit(const Program& program, const EventUnit& unit) {
  return unit.is_pair ? report::class_names.size() - 1 : static_cast<std::size_t>(program.schedule.ops[unit.op].kind);
}

}  // namespace

Walk::Walk(const Program& program, const Events& events) : program_(program), events_(events) {
  std::vector<std::vector<Time>> durations(program.schedule.placement.rank_of.size() * report::class_names.size());
  for (const EventUnit& unit : events.units()) {
    const Op op = program.schedule.ops[unit.op];
    durations[op.stage * report::class_names.size() + class_of_unit(program, unit)].push_back(unit.span.end -
                                                                                              unit.span.start);
  }
  for (auto& each : durations) medians_.push_back(each.empty() ? 0 : report::median(std::move(each)));
}

Time Walk::expected(Index unit) const {
  const EventUnit& each = events_.units()[unit];
  return medians_[op_of_unit(unit).stage * report::class_names.size() + class_of_unit(program_, each)];
}

void Walk::back(int rank, Span window, Index next, std::vector<IdleSegment>& segments) {
  rank_ = rank;
  window_ = window;
  drains_ = next == none;
  by_order_ = true;
  needed_ = none;
  held_.reset();
  Index event = next == none ? Events::end_of(events_.last_unit()) : Events::start_of(next);
  while (events_[event].time > window.start) {
    const Edge* edge = pick(event);
    if (edge == nullptr) {
      add_segment({window.start, events_[event].time}, Cause::warm_up, op_of_unit(events_[event].subject),
                  events_.units()[events_[event].subject].rank, segments);
      return;
    }
    add(event, *edge, segments);
    follow(event, *edge);
    event = edge->from;
  }
}

// Of the messages of a batch that end last, the one that is needed comes first.
const Edge* Walk::pick(Index event) const {
  if (events_[event].kind == Event::Kind::batch_end && needed_ != none) {
    for (const Edge& edge : events_.into(event)) {
      const Event& from = events_[edge.from];
      if (from.kind == Event::Kind::message_end && from.subject == needed_ && from.time == events_[event].time) {
        return &edge;
      }
    }
  }
  return events_.binding(event);
}

void Walk::follow(Index to, const Edge& edge) {
  const Event& from = events_[edge.from];
  switch (edge.reason) {
    case Reason::runs:
    case Reason::transfer:
      return;
    case Reason::launch:
      by_order_ = from.kind != Event::Kind::message_end;
      needed_ = by_order_ ? none : from.subject;
      return;
    case Reason::arrival:
      by_order_ = false;
      needed_ = from.subject;
      if (from.kind == Event::Kind::batch_end) follow_arrival(edge.from, events_[to].subject);
      return;
    case Reason::link:
      hold(Cause::link_busy);
      needed_ = from.subject;
      return;
    case Reason::stream:
      hold(Cause::head_of_line);
      needed_ = none;
      return;
    case Reason::batch:
      if (from.kind != Event::Kind::message_end || from.subject == needed_) return;
      hold(Cause::head_of_line);
      needed_ = from.subject;
      return;
    case Reason::issue:
      // Else it is not what was needed that ran, but what stood before the send.
      if (needed_ == none || events_.messages()[needed_].producer != from.subject) by_order_ = true;
      return;
  }
}

// The message of the batch that the unit needs.
void Walk::follow_arrival(Index batch, Index unit) {
  needed_ = none;
  const EventUnit& each = events_.units()[unit];
  for (std::size_t part = 0; part < (each.is_pair ? 2U : 1U); ++part) {
    const Index message = events_.message_to(program_.schedule.ops[each.op + part]);
    for (const Edge& edge : events_.into(batch)) {
      const Event& member = events_[edge.from];
      if (member.kind == Event::Kind::message_end && member.subject == message) needed_ = message;
    }
  }
}

void Walk::hold(Cause cause) {
  if (held_ || needed_ == none) return;
  held_ = Held{events_.units()[events_.messages()[needed_].producer].span.end, cause};
}

void Walk::add(Index to, const Edge& edge, std::vector<IdleSegment>& segments) {
  if (edge.weight == 0) return;
  const Span span{events_[edge.from].time, events_[to].time};
  const Index subject = events_[to].subject;
  if (edge.reason == Reason::runs) {
    add_run(subject, span, segments);
  } else if (edge.reason == Reason::transfer) {
    const EventMessage& message = events_.messages()[subject];
    add_segment(span, Cause::transfer, message.receive, events_.units()[message.producer].rank, segments);
  } else {
    add_segment(span, Cause::launch, op_of_unit(subject), events_.units()[subject].rank, segments);
  }
  if (held_ && held_->since >= span.start) held_.reset();
}

void Walk::add_run(Index unit, Span span, std::vector<IdleSegment>& segments) {
  const EventUnit& each = events_.units()[unit];
  const Op op = op_of_unit(unit);
  if (drains_ && unit == events_.last_unit()) return add_segment(span, Cause::drain, op, each.rank, segments);
  const Time usual = std::min(span.end, each.span.start + expected(unit));
  add_segment({usual, span.end}, Cause::straggler, op, each.rank, segments);
  const auto of_class = static_cast<Cause>(class_of_unit(program_, each));
  add_segment({span.start, usual}, by_order_ ? Cause::order : of_class, op, each.rank, segments);
}

void Walk::add_segment(Span span, Cause cause, Op op, int from, std::vector<IdleSegment>& segments) const {
  if (!held_) return add_inside(span, cause, op, from, segments);
  const Time cut = std::clamp(held_->since, span.start, std::max(span.start, span.end));
  add_inside({cut, span.end}, held_->cause, op, from, segments);
  add_inside({span.start, cut}, cause, op, from, segments);
}

// The part of it that is in the window.
void Walk::add_inside(Span span, Cause cause, Op op, int from, std::vector<IdleSegment>& segments) const {
  const Span inside{std::max(span.start, window_.start), std::min(span.end, window_.end)};
  if (inside.start >= inside.end) return;
  segments.push_back({rank_, inside, cause, Readiness::nothing, op, from});
}

}  // namespace dualpipe::detail::explain
