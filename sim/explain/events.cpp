#include "dualpipe/sim/explain/events.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <map>
#include <utility>

#include "dualpipe/sim/simulate/tasks.h"

namespace dualpipe::detail::explain {

Events::Events(const Program& program, const Costs& costs, const Timeline& timeline) : program_(program) {
  const simulate::Tasks tasks(program, costs);
  add_units(timeline);
  add_order(costs.launch);
  add_messages();
  switch (costs.model) {
    case CommunicationModel::latency:
      add_latency(costs, tasks);
      break;
    case CommunicationModel::links:
      add_links(costs, tasks, timeline);
      break;
    case CommunicationModel::stream:
      add_stream(timeline);
      break;
  }
  if (costs.model != CommunicationModel::stream) add_arrivals();
  finish();
}

Events::Events(const Program& program, const Timeline& timeline) : program_(program) {
  add_units(timeline);
  add_messages();
  add_measured(timeline);
  finish();
}

void Events::add_units(const Timeline& timeline) {
  const Schedule& schedule = program_.schedule;
  assert(timeline.ops.size() == schedule.ops.size());
  unit_of_.assign(schedule.placement.rank_of.size() * schedule.micro_batches * 3, none);
  message_of_.assign(unit_of_.size(), none);
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    rank_begin_.push_back(static_cast<Index>(units_.size()));
    const auto ops = schedule.rank(rank);
    const std::size_t begin = schedule.rank_begin[static_cast<std::size_t>(rank)];
    for (std::size_t i = 0; i < ops.size();) {
      const std::size_t size = unit_size(ops.subspan(i));
      const auto unit = static_cast<Index>(units_.size());
      units_.push_back({timeline.ops[begin + i], begin + i, rank, size == 2});
      for (std::size_t part = 0; part < size; ++part) unit_of_[place_of(ops[i + part])] = unit;
      i += size;
    }
  }
  rank_begin_.push_back(static_cast<Index>(units_.size()));
  for (Index unit = 0; unit < units_.size(); ++unit) {
    const Span span = units_[unit].span;
    static_cast<void>(add_event({span.start, Event::Kind::unit_start, unit}));
    static_cast<void>(add_event({span.end, Event::Kind::unit_end, unit}));
    add_edge(start_of(unit), end_of(unit), Reason::runs, span.end - span.start);
    if (last_unit_ == none || span.end > last_end_) {
      last_unit_ = unit;
      last_end_ = span.end;
    }
    first_start_ = unit == 0 ? span.start : std::min(first_start_, span.start);
  }
}

void Events::add_order(Time launch) {
  for (Index unit = 0; unit < units_.size(); ++unit) {
    if (!is_first(unit)) add_edge(end_of(unit - 1), start_of(unit), Reason::launch, launch);
  }
}

void Events::add_messages() {
  const Placement& placement = program_.schedule.placement;
  message_events_ = static_cast<Index>(events_.size());
  for (Index unit = 0; unit < units_.size(); ++unit) {
    for (std::size_t part = 0; part < (units_[unit].is_pair ? 2U : 1U); ++part) {
      const Op op = program_.schedule.ops[units_[unit].op + part];
      const auto from = producer_of(op, placement);
      if (!from || !from->is_remote) continue;
      const Index producer = unit_of(op_of(Op{op.micro_batch, from->stage, receive_for(op).kind, false}));
      if (producer == none) continue;
      const auto message = static_cast<Index>(messages_.size());
      message_of_[place_of(op)] = message;
      messages_.push_back({{}, receive_for(op), producer, unit});
      static_cast<void>(add_event({0, Event::Kind::message_begin, message}));
      static_cast<void>(add_event({0, Event::Kind::message_end, message}));
    }
  }
}

void Events::set_span(Index message, Span span) {
  messages_[message].span = span;
  events_[begin_of(message)].time = span.start;
  events_[arrival_of(message)].time = span.end;
  add_edge(begin_of(message), arrival_of(message), Reason::transfer, span.end - span.start);
}

void Events::add_arrivals() {
  for (Index message = 0; message < messages_.size(); ++message) {
    add_edge(arrival_of(message), start_of(messages_[message].consumer), Reason::arrival);
  }
}

Index Events::release_of(const Costs& costs, const simulate::Tasks& tasks, Index message) {
  const Index producer = messages_[message].producer;
  const EventUnit& unit = units_[producer];
  if (!costs.release_early || !unit.is_pair) return end_of(producer);
  const auto& ops = program_.schedule.ops;
  const bool is_first = is_forward(ops[unit.op].kind) == is_forward(messages_[message].receive.kind);
  const Time duration = tasks.of(ops[unit.op + (is_first ? 0 : 1)]).duration;
  if (unit.span.start + duration >= unit.span.end) return end_of(producer);
  const Index release = add_event({unit.span.start + duration, Event::Kind::release, producer});
  add_edge(start_of(producer), release, Reason::runs, duration);
  return release;
}

void Events::add_latency(const Costs& costs, const simulate::Tasks& tasks) {
  for (Index message = 0; message < messages_.size(); ++message) {
    const Index release = release_of(costs, tasks, message);
    const Time begin = events_[release].time;
    add_edge(release, begin_of(message), Reason::issue);
    set_span(message, {begin, begin + tasks.of(op_of(messages_[message].receive)).in->transfer});
  }
}

// A link passes messages on in the order of the sends of its rank.
void Events::add_links(const Costs& costs, const simulate::Tasks& tasks, const Timeline& timeline) {
  const Schedule& schedule = program_.schedule;
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    std::map<int, Index> last_on_link;  // by the rank at its other end
    Index before = none;                // the unit before the slot
    for (std::size_t position = 0; position <= schedule.rank(rank).size(); ++position) {
      const std::size_t slot = program_.slot_index(rank, position);
      for (std::uint32_t i = program_.slot_begin[slot]; i < program_.slot_begin[slot + 1]; ++i) {
        const Op op = program_.communication[i];
        if (!is_send(op.kind)) continue;
        const Index message = message_to(op_of(peer_of(op, schedule.placement)));
        const bool is_own = messages_[message].producer == before;
        if (before != none) {
          add_edge(is_own ? release_of(costs, tasks, message) : end_of(before), begin_of(message), Reason::issue);
        }
        const auto [link, is_new] = last_on_link.try_emplace(units_[messages_[message].consumer].rank, message);
        if (!is_new) add_edge(arrival_of(std::exchange(link->second, message)), begin_of(message), Reason::link);
        set_span(message, timeline.communication[i]);
      }
      const std::size_t op = schedule.rank_begin[static_cast<std::size_t>(rank)] + position;
      if (position < schedule.rank(rank).size()) before = unit_of(schedule.ops[op]);
    }
  }
}

void Events::add_stream(const Timeline& timeline) {
  for (int rank = 0; rank < program_.schedule.ranks(); ++rank) add_batches(rank, timeline);
}

void Events::add_batches(int rank, const Timeline& timeline) {
  const Schedule& schedule = program_.schedule;
  Index before = none;   // the unit before the slot
  Index earlier = none;  // the end of the batch before
  for (std::size_t position = 0; position <= schedule.rank(rank).size(); ++position) {
    const std::size_t slot = program_.slot_index(rank, position);
    const std::uint32_t slot_end = program_.slot_begin[slot + 1];
    for (std::uint32_t i = program_.slot_begin[slot]; i < slot_end;) {
      const Time reached = before == none ? 0 : units_[before].span.end;
      const Time start = earlier == none ? reached : std::max(reached, events_[earlier].time);
      const Index begin = add_event({start, Event::Kind::batch_begin, static_cast<Index>(rank)});
      const Index end = add_event({start, Event::Kind::batch_end, static_cast<Index>(rank)});
      if (before != none) add_edge(end_of(before), begin, Reason::issue);
      if (earlier != none) add_edge(earlier, begin, Reason::stream);
      add_edge(begin, end, Reason::batch);
      for (bool more = true; more; ++i) {
        const Op op = program_.communication[i];
        more = op.with_next;
        if (!is_send(op.kind) && !is_receive(op.kind)) continue;
        const Op receive = is_send(op.kind) ? peer_of(op, schedule.placement) : op;
        const Index message = message_to(op_of(receive));
        if (is_send(op.kind)) set_span(message, timeline.communication[i]);
        add_edge(begin, begin_of(message), Reason::batch);
        add_edge(arrival_of(message), end, Reason::batch);
        events_[end].time = std::max(events_[end].time, timeline.communication[i].end);
        if (!is_send(op.kind)) add_edge(end, start_of(messages_[message].consumer), Reason::arrival);
      }
      earlier = end;
    }
    const std::size_t op = schedule.rank_begin[static_cast<std::size_t>(rank)] + position;
    if (position < schedule.rank(rank).size()) before = unit_of(schedule.ops[op]);
  }
}

void Events::add_measured(const Timeline& timeline) {
  if (timeline.communication.size() == program_.communication.size()) {
    arrivals_.resize(messages_.size());
    for (std::size_t i = 0; i < program_.communication.size(); ++i) {
      const Op op = program_.communication[i];
      if (!is_receive(op.kind)) continue;
      const Index message = message_to(op_of(op));
      if (message != none) arrivals_[message] = timeline.communication[i].end;
    }
  }
  for (Index unit = 0; unit < units_.size(); ++unit) add_measured_unit(unit);
}

// When a message was there, as far as is known: not before its op had ended, nor after the one that needs it started.
Time Events::came_by(Index message, Time start) const {
  const Time made = units_[messages_[message].producer].span.end;
  return knows_arrivals() ? std::min(std::max(made, arrivals_[message]), start) : std::min(made, start);
}

// What the unit waited for last had all the time up to its start; of a message that came before that, up to there.
void Events::add_measured_unit(Index unit) {
  const Time start = units_[unit].span.start;
  Time latest = is_first(unit) ? std::numeric_limits<Time>::min() : units_[unit - 1].span.end;
  Index last = none;
  std::array<Index, 2> inputs{none, none};
  for (std::size_t part = 0; part < (units_[unit].is_pair ? 2U : 1U); ++part) {
    inputs[part] = message_to(program_.schedule.ops[units_[unit].op + part]);
    if (inputs[part] == none || units_[messages_[inputs[part]].producer].span.end > start) continue;
    const Time came = came_by(inputs[part], start);
    if (came <= latest) continue;
    latest = came;
    last = inputs[part];
  }
  if (!is_first(unit)) {
    add_edge(end_of(unit - 1), start_of(unit), Reason::launch, last == none ? start - latest : 0);
  }
  for (const Index message : inputs) {
    if (message == none) continue;
    // Clocks that do not agree may have it that the op starts before its input is made: that explains nothing then.
    const Time made = units_[messages_[message].producer].span.end;
    if (made <= start) add_edge(end_of(messages_[message].producer), begin_of(message), Reason::issue);
    const Time came = message == last && !knows_arrivals() ? start : came_by(message, start);
    set_span(message, {std::min(made, start), came});
    if (message == last && came < start) {
      add_edge(arrival_of(message), start_of(unit), Reason::launch, start - came);
    } else {
      add_edge(arrival_of(message), start_of(unit), Reason::arrival);
    }
  }
}

void Events::finish() {
  edge_begin_.assign(events_.size() + 1, 0);
  for (const NewEdge& each : new_edges_) ++edge_begin_[each.to + 1];
  for (std::size_t i = 1; i < edge_begin_.size(); ++i) edge_begin_[i] += edge_begin_[i - 1];
  edges_.resize(new_edges_.size());
  std::vector<Index> next(edge_begin_.begin(), edge_begin_.end() - 1);
  for (const NewEdge& each : new_edges_) edges_[next[each.to]++] = each.edge;
  new_edges_ = {};
}

const Edge* Events::binding(Index event) const {
  for (const Edge& edge : into(event)) {
    if (events_[edge.from].time + edge.weight == events_[event].time) return &edge;
  }
  return nullptr;
}

std::vector<Time> Events::slack() const {
  std::vector<Index> waiting(events_.size());  // how many of what waits for an event are not done yet
  for (const Edge& edge : edges_) ++waiting[edge.from];
  std::vector<Time> latest(events_.size(), last_end_);
  std::vector<Index> done;
  for (Index event = 0; event < events_.size(); ++event) {
    if (waiting[event] == 0) done.push_back(event);
  }
  while (!done.empty()) {
    const Index event = done.back();
    done.pop_back();
    for (const Edge& edge : into(event)) {
      latest[edge.from] = std::min(latest[edge.from], latest[event] - edge.weight);
      if (--waiting[edge.from] == 0) done.push_back(edge.from);
    }
    latest[event] -= events_[event].time;
  }
  return latest;
}

}  // namespace dualpipe::detail::explain
