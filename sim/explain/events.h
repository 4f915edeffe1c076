// What happens in a run, and what each of it waits for: a graph whose longest path is the run. Private to sim/explain.
//
//   start of a unit ──runs──▶ its end ──issue──▶ begin of a message ──transfer──▶ its end ──arrival──▶ start of a unit
//                                └──launch──▶ start of the rank's next unit
//
// A unit is an op, or the two of an F&B pair. An event takes place when the last of what it waits for has, plus the
// time that stands at the edge; so each event has an edge that is tight, and following these back from the last event
// of all leads to the first: that is a critical path. Which edges a message has is what the models of communication
// differ in:
//
//   latency   its result is there
//   links     the slot of its send is reached (issue); the message before it on the link has ended (link)
//   stream    the batches of both of its ends have begun (batch); a batch begins when its slot is reached (issue) and
//             the batch before it has ended (stream), and ends with the last of its messages (batch)
//   measured  nothing is known but when ops ran: what lies between the end of what was waited for and the start of the
//             op is a transfer, or launch, whichever the op waited for last. Where it is known when messages came, the
//             time from there to the start of the op is launch
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::simulate {
class Tasks;
}  // namespace dualpipe::detail::simulate

namespace dualpipe::detail::explain {

using Index = std::uint32_t;
inline constexpr Index none = std::numeric_limits<Index>::max();

// What an event waits for in another one.
enum class Reason : std::uint8_t { runs, launch, transfer, issue, link, stream, batch, arrival };

struct Edge {
  Index from = none;
  Reason reason = Reason::runs;
  Time weight = 0;  // above 0 for runs, launch and transfer alone
};

// Of a rank, in its order.
struct EventUnit {
  Span span;
  std::size_t op = 0;  // of Schedule::ops, its first
  int rank = 0;
  bool is_pair = false;
};

// From one unit to another, on another rank.
struct EventMessage {
  Span span;
  Op receive;
  Index producer = none;  // units
  Index consumer = none;
};

struct Event {
  enum class Kind : std::uint8_t {
    unit_start,
    unit_end,
    release,  // of one result of a pair, before the pair's end
    message_begin,
    message_end,
    batch_begin,
    batch_end
  };
  Time time = 0;
  Kind kind = Kind::unit_start;
  Index subject = none;  // the unit, the message, or the rank of a batch; of a release the unit
};

class Events {
 public:
  // The timeline must be what simulate() made of the program and the costs, with Record::spans.
  Events(const Program& program, const Costs& costs, const Timeline& timeline);
  // Of a run that was measured: by the spans of its ops, and of its messages where these are known.
  Events(const Program& program, const Timeline& timeline);

  [[nodiscard]] std::span<const EventUnit> units() const { return units_; }
  [[nodiscard]] std::span<const EventUnit> units_on(int rank) const {
    const auto r = static_cast<std::size_t>(rank);
    return std::span(units_).subspan(rank_begin_[r], rank_begin_[r + 1] - rank_begin_[r]);
  }
  [[nodiscard]] std::span<const EventMessage> messages() const { return messages_; }
  // Of a measured run: whether it is known when messages came.
  [[nodiscard]] bool knows_arrivals() const { return !arrivals_.empty(); }
  [[nodiscard]] const Event& operator[](Index event) const { return events_[event]; }
  [[nodiscard]] std::size_t size() const { return events_.size(); }
  [[nodiscard]] std::span<const Edge> into(Index event) const {
    return std::span(edges_).subspan(edge_begin_[event], edge_begin_[event + 1] - edge_begin_[event]);
  }

  [[nodiscard]] static Index start_of(Index unit) { return 2 * unit; }
  [[nodiscard]] static Index end_of(Index unit) { return 2 * unit + 1; }
  // The first unit of a rank by its number among all.
  [[nodiscard]] Index first_unit(int rank) const { return rank_begin_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] bool is_first(Index unit) const { return first_unit(units_[unit].rank) == unit; }
  // The unit that runs an F, or a B or I, or a W; none: the program has no such op.
  [[nodiscard]] Index unit_of(Op op) const { return unit_of_[place_of(op)]; }
  // The message that brings the input of an op; none: no message does.
  [[nodiscard]] Index message_to(Op op) const { return message_of_[place_of(op)]; }

  // The edge that the event waited for last: of several the first, which is the rank's own order, then inputs in the
  // order of a pair's ops. None at the beginning of the run.
  [[nodiscard]] const Edge* binding(Index event) const;

  [[nodiscard]] Time first_start() const { return first_start_; }
  [[nodiscard]] Time last_end() const { return last_end_; }
  // The unit that ends last, the one on the lowest rank of several; none where nothing runs.
  [[nodiscard]] Index last_unit() const { return last_unit_; }

  // How much later each event could take place without making the run longer.
  [[nodiscard]] std::vector<Time> slack() const;

 private:
  struct NewEdge {
    Index to;
    Edge edge;
  };

  [[nodiscard]] std::size_t place_of(Op op) const {
    const std::size_t kind = op.kind == Kind::forward ? 0 : op.kind == Kind::weight_gradient ? 2 : 1;
    return (std::size_t{op.stage} * program_.schedule.micro_batches + op.micro_batch) * 3 + kind;
  }
  void add_units(const Timeline& timeline);
  void add_order(Time launch);
  void add_messages();
  void add_latency(const Costs& costs, const simulate::Tasks& tasks);
  void add_links(const Costs& costs, const simulate::Tasks& tasks, const Timeline& timeline);
  void add_stream(const Timeline& timeline);
  void add_batches(int rank, const Timeline& timeline);
  void add_measured(const Timeline& timeline);
  void add_measured_unit(Index unit);
  [[nodiscard]] Time came_by(Index message, Time start) const;
  void add_arrivals();
  void finish();

  [[nodiscard]] Index add_event(Event event) {
    events_.push_back(event);
    return static_cast<Index>(events_.size() - 1);
  }
  void add_edge(Index from, Index to, Reason reason, Time weight = 0) {
    new_edges_.push_back({to, {from, reason, weight}});
  }
  [[nodiscard]] Index begin_of(Index message) const { return message_events_ + 2 * message; }
  [[nodiscard]] Index arrival_of(Index message) const { return message_events_ + 2 * message + 1; }
  // The event from which on the result that a message carries is there.
  [[nodiscard]] Index release_of(const Costs& costs, const simulate::Tasks& tasks, Index message);
  void set_span(Index message, Span span);

  const Program& program_;
  std::vector<EventUnit> units_;
  std::vector<Index> rank_begin_;
  std::vector<EventMessage> messages_;
  std::vector<Index> unit_of_;
  std::vector<Index> message_of_;
  std::vector<Time> arrivals_;  // by message; empty where they are not known
  std::vector<Event> events_;
  Index message_events_ = 0;  // where those of messages begin
  std::vector<NewEdge> new_edges_;
  std::vector<Edge> edges_;  // by the event that they lead to
  std::vector<Index> edge_begin_;
  Time first_start_ = 0;
  Time last_end_ = 0;
  Index last_unit_ = none;
};

}  // namespace dualpipe::detail::explain
