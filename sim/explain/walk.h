// The walk back through a window, and what is said of each piece of it. Private to sim/explain.
#pragma once

#include <optional>
#include <vector>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/explain/explain.h"

namespace dualpipe::detail::explain {

class Walk {
 public:
  // All outlive it.
  Walk(const Program& program, const Events& events);

  // Adds the segments of a window, the last one first. `next`: the unit that ends the window; none: the run does.
  void back(int rank, Span window, Index next, std::vector<IdleSegment>& segments);

 private:
  // A message that could have gone before it did: the time from then on is put down to what held it, whatever that
  // was.
  struct Held {
    Time since = 0;
    Cause cause = Cause::link_busy;
  };

  [[nodiscard]] const Edge* pick(Index event) const;
  void follow(Index to, const Edge& edge);
  void follow_arrival(Index batch, Index unit);
  void hold(Cause cause);
  void add(Index to, const Edge& edge, std::vector<IdleSegment>& segments);
  void add_run(Index unit, Span span, std::vector<IdleSegment>& segments);
  void add_segment(Span span, Cause cause, Op op, int from, std::vector<IdleSegment>& segments) const;
  void add_inside(Span span, Cause cause, Op op, int from, std::vector<IdleSegment>& segments) const;
  [[nodiscard]] Op op_of_unit(Index unit) const { return program_.schedule.ops[events_.units()[unit].op]; }
  [[nodiscard]] Time expected(Index unit) const;

  const Program& program_;
  const Events& events_;
  std::vector<Time> medians_;  // by stage and class: the duration of its units

  // Of the walk under way.
  int rank_ = 0;
  Span window_;
  bool drains_ = false;
  bool by_order_ = false;  // the walk came to where it is by the order of a rank, not by a message
  Index needed_ = none;    // the message by which it did
  std::optional<Held> held_;
};

}  // namespace dualpipe::detail::explain
