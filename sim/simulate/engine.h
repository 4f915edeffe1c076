// The event engine. Private to sim/simulate.
//
// Every rank runs its ops in order, and an op starts when its rank is free and its input has arrived. So all times are
// maxima of sums, and it does not matter in which order they are computed. The engine runs one rank until that needs a
// message which has not been sent yet; the rank then sleeps, and the engine goes on with another one that can run. A
// send wakes the receiver if that sleeps for just this message. If no rank can run, and there are ops left, it is a
// deadlock.
//
//     ready ──▶ run the rank ──needs micro-batch m of a mailbox──▶ asleep ──deliver(m)──▶ ready
//
// The state of a thousand ranks should stay in the cache. So a mailbox holds a window of the micro-batches, not all of
// them. A rank runs only a few ops per turn, and then goes to the end of the queue. The rank that was woken last runs
// first, since its state and its neighbours' have just been used.
//
// How messages travel is decided by the Model (models.h), a class with these functions:
//
//     result(engine, task, op, released)    the op's result can be sent from the time `released` on
//     slot(engine, rank, position, now)     the rank has come to a slot; called only if `reads_slots`
//     turn(engine, rank)                    the rank has its turn; called only if `reads_slots`
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/simulate/tasks.h"

namespace dualpipe::detail::simulate {

// Whether gradients have to be reduced between stages. Only then do reductions take time.
[[nodiscard]] inline bool shares_weights(const Placement& placement) {
  const auto distinct = std::set(placement.weights_of.begin(), placement.weights_of.end()).size();
  return distinct < placement.weights_of.size();
}

// The queue of ranks that can run. Each is in it at most once.
class ReadyRanks {
 public:
  explicit ReadyRanks(std::size_t ranks) : ring_(std::bit_ceil(ranks)), queued_(ranks) {}
  [[nodiscard]] bool empty() const { return count_ == 0; }
  void push_front(std::size_t rank) {
    if (!enter(rank)) return;
    place(--first_) = static_cast<std::uint32_t>(rank);
  }
  void push_back(std::size_t rank) {
    if (!enter(rank)) return;
    place(first_ + count_ - 1) = static_cast<std::uint32_t>(rank);
  }
  [[nodiscard]] std::size_t pop_front() {
    const std::size_t rank = place(first_++);
    --count_;
    queued_[rank] = 0;
    return rank;
  }

 private:
  [[nodiscard]] bool enter(std::size_t rank) {
    if (queued_[rank] != 0) return false;
    queued_[rank] = 1;
    ++count_;
    return true;
  }
  [[nodiscard]] std::uint32_t& place(std::size_t number) { return ring_[number & (ring_.size() - 1)]; }

  std::vector<std::uint32_t> ring_;
  std::vector<std::uint8_t> queued_;
  std::size_t first_ = 0;  // modulo the ring's size; moves in both directions
  std::size_t count_ = 0;
};

template <typename Model>
class Engine {
 public:
  Engine(const Program& program, const Costs& costs, Record record)
      : program_(program),
        costs_(costs),
        tasks_(program, costs),
        jitter_(costs),
        ready_(static_cast<std::size_t>(program.schedule.ranks())),
        model_(program, costs, tasks_) {
    const bool shared = shares_weights(program.schedule.placement);
    ranks_.resize(static_cast<std::size_t>(program.schedule.ranks()));
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const auto ops = program.schedule.rank(static_cast<int>(r));
      ranks_[r].next = ops.data();
      ranks_[r].end = ops.data() + ops.size();
      if (shared) find_stops(r);
    }
    if (record != Record::ranks) op_spans_.resize(program.schedule.ops.size());
    if (record == Record::spans) {
      message_spans_.resize(tasks_.box_count() * program.schedule.micro_batches);
    }
  }

  // Runs all that can run. Returns false at a deadlock; the state is then that of the deadlock.
  [[nodiscard]] bool run() {
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      enter_slot(r);
      ready_.push_front(r);
    }
    while (!ready_.empty()) take_turn(ready_.pop_front());
    return std::ranges::all_of(ranks_, [](const Rank& rank) { return rank.next == rank.end; });
  }

  // For the models: a message reaches a stage.
  void deliver(Mailbox& box, std::uint32_t micro_batch, Span transfer) {
    if (records_messages()) message_span(box, micro_batch) = transfer;
    arrive(box, micro_batch, transfer.end);
  }
  void arrive(Mailbox& box, std::uint32_t micro_batch, Time arrival) {
    box.arrivals.put(micro_batch, arrival);
    if (box.awaited != micro_batch) return;
    box.awaited = Mailbox::nothing;
    ready_.push_front(box.rank);
  }
  void wake(std::size_t rank) { ready_.push_front(rank); }
  [[nodiscard]] bool records_messages() const { return !message_spans_.empty(); }
  [[nodiscard]] Span& message_span(const Mailbox& box, std::uint32_t micro_batch) {
    return message_spans_[tasks_.index_of(box) * program_.schedule.micro_batches + micro_batch];
  }

  // The position of the rank's next op among its ops.
  [[nodiscard]] std::size_t position(std::size_t rank) const {
    return static_cast<std::size_t>(ranks_[rank].next - program_.schedule.ops.data()) -
           program_.schedule.rank_begin[rank];
  }
  // When the rank came to each of its slots that reduce shared gradients, in order. To be called after run().
  [[nodiscard]] std::span<const Time> stop_times(std::size_t rank) const { return ranks_[rank].stop_times; }
  [[nodiscard]] std::span<const std::size_t> stops(std::size_t rank) const { return ranks_[rank].stops; }

  [[nodiscard]] RankTimes times(std::size_t rank) const {
    const Rank& r = ranks_[rank];
    return {r.first_start, r.last_end, r.busy};
  }
  [[nodiscard]] std::vector<Span> take_op_spans() { return std::move(op_spans_); }
  [[nodiscard]] Tasks& tasks() { return tasks_; }
  [[nodiscard]] const Program& program() const { return program_; }
  [[nodiscard]] Model& model() { return model_; }

 private:
  static constexpr std::ptrdiff_t turn_ops = 16;
  static constexpr std::ptrdiff_t line_ops = 64 / sizeof(Op);

  struct Rank {
    const Op* next = nullptr;
    const Op* end = nullptr;
    Time free = 0;  // when its next op can start
    Time last_end = 0;
    Time busy = 0;
    Time first_start = 0;
    bool started = false;
    std::size_t stops_left = 0;
    std::vector<std::size_t> stops;  // positions of slots with reductions of shared gradients
    std::vector<Time> stop_times;    // when those so far were reached
  };

  void find_stops(std::size_t rank);

  // A slot is reached when the op before it has ended.
  void enter_slot(std::size_t rank) {
    Rank& r = ranks_[rank];
    if (r.stops_left > 0 && r.stops[r.stop_times.size()] == position(rank)) {
      r.stop_times.push_back(r.last_end);
      --r.stops_left;
    }
    if constexpr (Model::reads_slots) model_.slot(*this, rank, position(rank), r.last_end);
  }

  void take_turn(std::size_t rank) {
    Rank& r = ranks_[rank];
    if constexpr (Model::reads_slots) model_.turn(*this, rank);
    const Op* const stop = r.next + std::min(turn_ops, r.end - r.next);
    // Fetches what the rank will read in its next turns. The processor cannot foresee it, as a thousand ranks take
    // turns. (GCC would drop these calls from a function of their own, as it had no effect.)
    __builtin_prefetch(r.next + line_ops);
    if constexpr (Model::reads_slots) {
      const std::uint32_t* const slot =
          &program_.slot_begin[program_.slot_index(static_cast<int>(rank), position(rank))];
      __builtin_prefetch(slot + 2 * line_ops);
      const std::size_t message = *slot + std::size_t{2 * line_ops};
      if (message < program_.communication.size()) __builtin_prefetch(&program_.communication[message]);
    }
    while (r.next < stop) {
      if (!(r.next->with_next ? run_pair(r) : run_op(r))) return;
      if (Model::reads_slots || r.stops_left > 0) enter_slot(rank);
    }
    if (r.next < r.end) ready_.push_back(rank);
  }

  // When the op's input arrives. Null if that is not known yet: then the rank sleeps until it is.
  [[nodiscard]] static const Time* arrival(const Task& task, Op op) {
    const Time* known = task.in->arrivals.find(op.micro_batch);
    if (known == nullptr) task.in->awaited = op.micro_batch;
    return known;
  }

  [[nodiscard]] bool run_op(Rank& r) {
    const Op op = *r.next;
    const Task& task = tasks_.of(op);
    Time start = r.free;
    if (task.in != nullptr) {
      const Time* input = arrival(task, op);
      if (input == nullptr) return false;
      start = std::max(start, *input);
      task.in->arrivals.erase(op.micro_batch);
    }
    const Time end = start + (jitter_.off() ? task.duration : jitter_.scale(task.duration, op));
    finish(r, 1, start, end);
    if (task.out != nullptr) model_.result(*this, task, op, end);
    return true;
  }

  // An F&B pair is atomic: it starts when both inputs are there and, unless results are released early, both are out at
  // its end.
  [[nodiscard]] bool run_pair(Rank& r) {
    const Op forward = r.next[0];
    const Op backward = r.next[1];
    Time start = r.free;
    for (const Op op : {forward, backward}) {
      const Task& task = tasks_.of(op);
      if (task.in == nullptr) continue;
      const Time* input = arrival(task, op);
      if (input == nullptr) return false;
      start = std::max(start, *input);
    }
    for (const Op op : {forward, backward}) {
      if (const Task& task = tasks_.of(op); task.in != nullptr) task.in->arrivals.erase(op.micro_batch);
    }
    Time duration = tasks_.pair_duration(forward, backward);
    if (!jitter_.off()) duration = jitter_.scale(duration, forward);
    const Time end = start + duration;
    finish(r, 2, start, end);
    for (const Op op : {forward, backward}) {
      const Task& task = tasks_.of(op);
      const Time released = costs_.release_early ? std::min(start + task.duration, end) : end;
      if (task.out != nullptr) model_.result(*this, task, op, released);
    }
    return true;
  }

  void finish(Rank& r, std::size_t ops, Time start, Time end) {
    if (!op_spans_.empty()) {
      Span* spans = &op_spans_[static_cast<std::size_t>(r.next - program_.schedule.ops.data())];
      std::fill_n(spans, ops, Span{start, end});
    }
    if (!r.started) r.first_start = start;
    r.started = true;
    r.busy += end - start;
    r.last_end = end;
    r.free = end + costs_.launch;
    r.next += ops;
  }

  const Program& program_;
  const Costs& costs_;
  Tasks tasks_;
  Jitter jitter_;
  std::vector<Rank> ranks_;
  ReadyRanks ready_;
  Model model_;
  std::vector<Span> op_spans_;
  std::vector<Span> message_spans_;  // by mailbox, then micro-batch
};

template <typename Model>
void Engine<Model>::find_stops(std::size_t rank) {
  const auto slot_count = program_.schedule.rank(static_cast<int>(rank)).size() + 1;
  const auto begins =
      std::span(program_.slot_begin).subspan(program_.slot_index(static_cast<int>(rank), 0), slot_count + 1);
  Rank& r = ranks_[rank];
  for (std::uint32_t i = begins.front(); i < begins.back(); ++i) {
    if (program_.communication[i].kind != Kind::reduce_gradients) continue;
    const auto slot = static_cast<std::size_t>(std::ranges::upper_bound(begins, i) - begins.begin()) - 1;
    if (r.stops.empty() || r.stops.back() != slot) r.stops.push_back(slot);
  }
  r.stops_left = r.stops.size();
}

}  // namespace dualpipe::detail::simulate
