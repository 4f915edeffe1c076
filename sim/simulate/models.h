// The three ways in which messages travel (CommunicationModel), for the engine. Private to sim/simulate.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "dualpipe/sim/simulate/engine.h"

namespace dualpipe::detail::simulate {

// A message arrives `latency` after the op that made it has ended, wherever its send and its receive stand.
class LatencyModel {
 public:
  static constexpr bool reads_slots = false;

  LatencyModel(const Program&, const Costs&, const Tasks&) {}

  void result(Engine<LatencyModel>& engine, const Task& task, Op op, Time released) {
    engine.deliver(*task.out, op.micro_batch, {released, released + task.out->transfer});
  }
};

// A message starts when the slot of its send is reached and the directed link to the other rank is free: the link
// passes on one message at a time, in the order of the sends.
class LinksModel {
 public:
  static constexpr bool reads_slots = true;

  LinksModel(const Program& program, const Costs&, Tasks& tasks) : link_of_(tasks.box_count()) {
    const Placement& placement = program.schedule.placement;
    std::map<std::pair<std::uint16_t, std::uint16_t>, std::uint32_t> links;
    for (int stage = 0; stage < placement.stages(); ++stage) {
      for (const Kind kind : {Kind::forward, Kind::backward}) {
        const Mailbox* out = tasks.of({0, static_cast<std::uint16_t>(stage), kind, false}).out;
        if (out == nullptr) continue;
        const std::pair ends{placement.rank_of[static_cast<std::size_t>(stage)], out->rank};
        const auto [link, is_new] = links.try_emplace(ends, static_cast<std::uint32_t>(links.size()));
        link_of_[tasks.index_of(*out)] = link->second;
      }
    }
    link_free_.resize(links.size());
  }

  // Remembered until the send. Where results are released early, that message may start before its slot is reached.
  void result(Engine<LinksModel>&, const Task& task, Op op, Time released) {
    Result& result = results_[op.kind == Kind::forward ? 0 : 1];
    result = {task.out, op.micro_batch, released};
  }

  void slot(Engine<LinksModel>& engine, std::size_t rank, std::size_t position, Time now) {
    for (const Op op : engine.program().slot(static_cast<int>(rank), position)) {
      if (is_send(op.kind)) send(engine, op, now);
    }
    results_ = {};
  }

  void turn(Engine<LinksModel>&, std::size_t) {}

 private:
  // What the op just before the slot made.
  struct Result {
    const Mailbox* box = nullptr;
    std::uint32_t micro_batch = 0;
    Time released = 0;
  };

  void send(Engine<LinksModel>& engine, Op op, Time now) {
    Mailbox& box = engine.tasks().box_of(op);
    for (const Result& result : results_) {
      if (result.box == &box && result.micro_batch == op.micro_batch) now = result.released;
    }
    Time& free = link_free_[link_of_[engine.tasks().index_of(box)]];
    const Time start = std::max(now, free);
    free = start + box.transfer;
    engine.deliver(box, op.micro_batch, {start, free});
  }

  std::array<Result, 2> results_;
  std::vector<std::uint32_t> link_of_;  // by mailbox
  std::vector<Time> link_free_;         // by directed link, when it has passed on all so far
};

// A rank's batches run one after the other. A message starts when both of its ends have started, as NCCL's send and
// receive kernels wait for each other. A batch ends with its last message, and only then have its messages arrived.
class StreamModel {
 public:
  static constexpr bool reads_slots = true;

  StreamModel(const Program& program, const Costs&, Tasks& tasks)
      : offers_(tasks.box_count()), streams_(static_cast<std::size_t>(program.schedule.ranks())) {
    for (std::size_t r = 0; r < streams_.size(); ++r) {
      streams_[r].next = program.slot_begin[program.slot_index(static_cast<int>(r), 0)];
    }
  }

  void result(Engine<StreamModel>&, const Task&, Op, Time) {}

  void slot(Engine<StreamModel>& engine, std::size_t rank, std::size_t position, Time now) {
    const std::size_t index = engine.program().slot_index(static_cast<int>(rank), position);
    const std::uint32_t end = engine.program().slot_begin[index + 1];
    if (end == engine.program().slot_begin[index]) return;
    streams_[rank].reached.push_back({end, now});
    advance(engine, rank);
  }

  void turn(Engine<StreamModel>& engine, std::size_t rank) { advance(engine, rank); }

  // For find_deadlock(): the messages of the rank's latest batch are those from batch_begin to next.
  [[nodiscard]] std::uint32_t batch_begin(std::size_t rank) const { return streams_[rank].batch_begin; }
  [[nodiscard]] std::uint32_t next(std::size_t rank) const { return streams_[rank].next; }
  // Whether one end of the message has started and waits for the other.
  [[nodiscard]] bool waits(std::size_t box, std::uint32_t micro_batch) const {
    return offers_[box].find(micro_batch) != nullptr;
  }

 private:
  // A slot that the rank's computation has come to, and of which some batch has not started yet.
  struct Reached {
    std::uint32_t end;  // of its messages
    Time time;
  };

  // One end of a message that has started, and waits for the other.
  struct Offer {
    Time start;
    std::uint32_t rank;
  };

  // A queue, in the order in which the slots were reached. It mostly holds one slot or none. (A std::deque takes half a
  // kilobyte even so, and those of a thousand ranks would push each other out of the cache.)
  class ReachedSlots {
   public:
    [[nodiscard]] bool empty() const { return slots_.empty(); }
    [[nodiscard]] const Reached& front() const { return slots_[first_]; }
    void push_back(Reached slot) { slots_.push_back(slot); }
    void pop_front() {
      if (2 * ++first_ <= slots_.size()) return;
      slots_.erase(slots_.begin(), slots_.begin() + static_cast<std::ptrdiff_t>(first_));
      first_ = 0;
    }

   private:
    std::vector<Reached> slots_;
    std::size_t first_ = 0;  // those before it have gone
  };

  struct Stream {
    ReachedSlots reached;
    std::uint32_t next = 0;  // message to start
    std::uint32_t batch_begin = 0;
    std::uint32_t outstanding = 0;  // messages of the batch under way
    Time end = 0;                   // of the batch so far
  };

  void advance(Engine<StreamModel>& engine, std::size_t rank) {
    Stream& stream = streams_[rank];
    while (stream.outstanding == 0 && !stream.reached.empty()) {
      const Reached slot = stream.reached.front();
      if (stream.next == slot.end) {
        stream.reached.pop_front();
        continue;
      }
      start_batch(engine, rank, std::max(stream.end, slot.time));
      if (stream.outstanding == 0) complete_batch(engine, rank);
    }
  }

  void start_batch(Engine<StreamModel>& engine, std::size_t rank, Time start) {
    Stream& stream = streams_[rank];
    stream.batch_begin = stream.next;
    stream.end = start;
    bool more = true;
    while (more) {
      const Op op = engine.program().communication[stream.next++];
      if (is_send(op.kind) || is_receive(op.kind)) start_message(engine, rank, op, start);
      more = op.with_next;
    }
  }

  void start_message(Engine<StreamModel>& engine, std::size_t rank, Op op, Time start) {
    Mailbox& box = engine.tasks().box_of(op);
    detail::schedule::Window<Offer>& offers = offers_[engine.tasks().index_of(box)];
    const Offer* other = offers.find(op.micro_batch);
    if (other == nullptr) {
      offers.put(op.micro_batch, {start, static_cast<std::uint32_t>(rank)});
      ++streams_[rank].outstanding;
      return;
    }
    const std::size_t peer = other->rank;
    const Time both = std::max(start, other->start);
    const Time end = both + box.transfer;
    offers.erase(op.micro_batch);
    if (engine.records_messages()) engine.message_span(box, op.micro_batch) = {both, end};
    streams_[rank].end = std::max(streams_[rank].end, end);
    streams_[peer].end = std::max(streams_[peer].end, end);
    if (--streams_[peer].outstanding > 0) return;
    complete_batch(engine, peer);
    engine.wake(peer);
  }

  void complete_batch(Engine<StreamModel>& engine, std::size_t rank) {
    const Stream& stream = streams_[rank];
    for (std::uint32_t i = stream.batch_begin; i < stream.next; ++i) {
      const Op op = engine.program().communication[i];
      if (is_receive(op.kind)) engine.arrive(engine.tasks().box_of(op), op.micro_batch, stream.end);
    }
  }

  std::vector<detail::schedule::Window<Offer>> offers_;  // by mailbox
  std::vector<Stream> streams_;                          // by rank
};

}  // namespace dualpipe::detail::simulate
