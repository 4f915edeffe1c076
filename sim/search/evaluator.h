// When the ops of an order run, for a search that changes it op by op: what simulate() says under `latency` and
// `links`, thousands of times as often.
//
// All is kept by position in the words. A move changes a piece of one word, and nothing that ends before that piece can
// start; so times are found anew from there on alone. A rank runs until it needs a result that is not there; then the
// rank that makes it runs on. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/search/problem.h"

namespace dualpipe::detail::search {

class Evaluator {
 public:
  static constexpr Time hangs = std::numeric_limits<Time>::max();

  // Both must outlive it.
  // `by_span`: makespans are the longest rank's span instead.
  Evaluator(const Problem& problem, const Ops& ops, bool by_span = false);

  // The makespan, or `hangs`. Whether ranks hold too much is not looked at.
  Time reset(const Order& order);

  [[nodiscard]] const Order& order() const { return word_; }
  [[nodiscard]] Time makespan() const { return makespan_; }
  // The entries before `position` in the rank's word and itself: what the rank then holds.
  [[nodiscard]] Bytes held(std::size_t position) const { return held_[position]; }
  [[nodiscard]] std::size_t position(OpId op) const { return position_[op]; }
  [[nodiscard]] Time end(std::size_t position) const { return times_[position].end; }
  [[nodiscard]] Time start(std::size_t position) const;
  // When the input of the op at a position is there, from another rank.
  [[nodiscard]] Time arrival(std::size_t position) const;

  // Whether the unit at `from` may go to where the entry `to` is, which goes to its other side with all between: no op
  // comes before one that it needs on its own rank, and the rank never holds too much. `from` and `to` begin units.
  [[nodiscard]] bool may_move(int rank, std::size_t from, std::size_t to) const;
  // Does it, and returns the makespan; `hangs`, also where it is sure to be more than `most`. Then one of the two below
  // has to follow.
  Time move(int rank, std::size_t from, std::size_t to, Time most);
  // Or another change of a piece of a word, whose entries are all there again.
  Time replace(int rank, std::size_t from, const std::vector<Entry>& entries, Time most);
  void accept();
  void undo();

  // Positions on a chain of ops each of which starts when the one before it lets it, from the end of the run.
  void critical_path(std::vector<std::size_t>& positions) const;

  [[nodiscard]] std::size_t unit_begin(std::size_t position) const;
  [[nodiscard]] std::size_t unit_end(std::size_t position) const;

 private:
  struct Times {
    Time end = 0;
    Time out = 0;  // when its result is where it is needed
  };

  void place(int rank, std::size_t from, std::size_t to);
  Time changed(int rank, std::size_t from, std::size_t to, Time most);
  Time run(Time most);
  template <bool general>
  bool finish(int rank, Time most);
  template <bool general>
  OpId advance(int rank);
  [[nodiscard]] Time begin_of(int rank) const;
  Time run_unit(std::size_t position, Time clock);
  void send(int rank, OpId op, Times& times, Time released);
  [[nodiscard]] Time unit_duration(std::size_t position) const;

  const Problem& problem_;
  const Ops& ops_;
  bool general_;  // units or links
  bool by_span_;
  Order word_;
  std::vector<std::uint32_t> position_;  // by op, and of none
  std::vector<Times> times_;             // by position, and of none: as they are, or are tried
  std::vector<Times> kept_;              // as they are
  std::vector<Bytes> held_;
  std::vector<Time> work_;  // of the rank, up to here
  std::vector<Time> load_;  // by rank
  Time makespan_ = 0;
  Time tried_ = 0;

  std::vector<std::size_t> first_;           // by rank: what is run anew begins there
  std::vector<std::size_t> next_;            // and has come to here; and of none
  std::vector<std::uint8_t> waits_;          // by rank
  std::vector<std::pair<int, OpId>> stack_;  // ranks, and what they wait for
  std::vector<std::uint32_t> link_of_;       // by stage: of F's result, and of I's
  std::vector<Time> link_free_;

  int changed_rank_ = 0;
  std::size_t changed_from_ = 0;
  std::vector<Entry> before_;  // the piece that was changed
};

}  // namespace dualpipe::detail::search
