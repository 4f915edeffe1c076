#include "tests/oracle.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace dualpipe::oracle {
namespace {

using Index = std::size_t;  // of an op in Schedule::ops

// A result that an op makes or needs: the output of a stage's forward, or the gradient of a stage's input.
struct Value {
  bool forward;
  int stage;
  std::uint32_t micro_batch;

  friend auto operator<=>(const Value&, const Value&) = default;
};

std::optional<Value> made_by(Op op) {
  if (op.kind == Kind::weight_gradient) return std::nullopt;
  return Value{op.kind == Kind::forward, op.stage, op.micro_batch};
}

// What an op needs from its neighbour in the chain.
std::optional<Value> needed_by(Op op, const Placement& placement) {
  const bool forward = op.kind == Kind::forward;
  if (op.kind == Kind::weight_gradient) return std::nullopt;
  const auto neighbour = forward ? placement.previous(op.stage) : placement.next(op.stage);
  if (!neighbour) return std::nullopt;
  return Value{forward, *neighbour, op.micro_batch};
}

// What a message carries, whichever end of it is given.
Value carried_by(Op message, const Placement& placement) {
  switch (message.kind) {
    case Kind::send_forward:
      return {true, message.stage, message.micro_batch};
    case Kind::receive_forward:
      return {true, *placement.previous(message.stage), message.micro_batch};
    case Kind::send_backward:
      return {false, message.stage, message.micro_batch};
    default:
      return {false, *placement.next(message.stage), message.micro_batch};
  }
}

class Durations {
 public:
  Durations(const Program& program, const Costs& costs) : placement_(program.schedule.placement), costs_(costs) {}

  [[nodiscard]] Time of(Op op) const { return slowed(nominal(op), op.stage); }
  [[nodiscard]] Time of_pair(Op forward, Op backward) const {
    const auto overlapped = costs_.of(forward.stage).overlapped;
    return overlapped ? slowed(*overlapped, forward.stage) : of(forward) + of(backward);
  }
  [[nodiscard]] Time of_message(const Value& value) const {
    // What a stage sends on is its own output; the gradient it sends back is that of the previous stage's output.
    return transfer(costs_.of(value.forward ? value.stage : *placement_.previous(value.stage)).message);
  }
  // A ring over n ranks passes 2(n-1)/n of the gradients through each.
  [[nodiscard]] Time of_reduction(int weights, std::size_t ranks) const {
    if (ranks < 2) return 0;
    int stage = 0;
    for (int s = 0; s < placement_.stages(); ++s) {
      if (placement_.weights_of[static_cast<std::size_t>(s)] == weights) stage = s;
    }
    const double share = 2.0 * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
    return transfer(std::llround(share * static_cast<double>(costs_.of(stage).gradients)));
  }

 private:
  [[nodiscard]] Time transfer(Bytes bytes) const {
    if (costs_.model == CommunicationModel::latency || costs_.bandwidth == 0) return costs_.latency;
    return costs_.latency + std::llround(static_cast<double>(bytes) * 1e9 / costs_.bandwidth);
  }
  [[nodiscard]] Time nominal(Op op) const {
    const StageCosts& stage = costs_.of(op.stage);
    switch (op.kind) {
      case Kind::forward:
        return stage.forward;
      case Kind::backward:
        return stage.backward + stage.recompute;
      case Kind::input_gradient:
        return stage.input_gradient + stage.recompute;
      default:
        return stage.weight_gradient;
    }
  }
  [[nodiscard]] Time slowed(Time time, int stage) const {
    if (costs_.speed.empty()) return time;
    return std::llround(static_cast<double>(time) / costs_.speed[placement_.rank_of[static_cast<std::size_t>(stage)]]);
  }

  const Placement& placement_;
  const Costs& costs_;
};

// What both ways of running share: the ops of a rank in units (an op, or a pair), and when they ran.
class Run {
 public:
  Run(const Program& program, const Costs& costs)
      : program_(program), placement_(program.schedule.placement), costs_(costs), durations_(program, costs) {
    const Schedule& schedule = program.schedule;
    for (Index i = 0; i < schedule.ops.size(); ++i) {
      if (const auto value = made_by(schedule.ops[i])) maker_[*value] = i;
    }
  }

 protected:
  [[nodiscard]] Op op(Index i) const { return program_.schedule.ops[i]; }
  [[nodiscard]] int rank_of(int stage) const { return placement_.rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] std::pair<Index, Index> ops_of(int rank) const {
    const auto& begin = program_.schedule.rank_begin;
    return {begin[static_cast<std::size_t>(rank)], begin[static_cast<std::size_t>(rank) + 1]};
  }
  // The ops that run as one with op i.
  [[nodiscard]] std::vector<Index> unit_of(Index i) const {
    if (op(i).with_next) return {i, i + 1};
    if (i > 0 && op(i - 1).with_next && rank_of(op(i - 1).stage) == rank_of(op(i).stage)) return {i - 1, i};
    return {i};
  }
  [[nodiscard]] Time duration(const std::vector<Index>& unit) const {
    return unit.size() == 2 ? durations_.of_pair(op(unit[0]), op(unit[1])) : durations_.of(op(unit[0]));
  }
  // How long after the start of its unit an op hands over what it made.
  [[nodiscard]] Time release_after(Index i) const {
    const Time whole = duration(unit_of(i));
    return costs_.release_early ? std::min(durations_.of(op(i)), whole) : whole;
  }

  // All ops have run. None: the reductions of shared gradients wait for each other.
  [[nodiscard]] std::optional<Result> result(std::vector<Span> spans, const std::map<Value, Span>& transfers) const {
    const auto reduced = last_reduction(spans);
    if (!reduced) return std::nullopt;
    Result result;
    result.reduced = *reduced;
    Time begin = spans.empty() ? 0 : spans[0].start;
    Time end = begin;
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      Rank figures;
      const auto [first, last] = ops_of(rank);
      if (first < last) figures = {spans[first].start, spans[last - 1].end, 0};
      for (Index i = first; i < last; ++i) {
        if (unit_of(i)[0] == i) figures.busy += spans[i].end - spans[i].start;
        begin = std::min(begin, spans[i].start);
        end = std::max(end, spans[i].end);
      }
      result.span = std::max(result.span, figures.last_end - figures.first_start);
      result.ranks.push_back(figures);
    }
    result.makespan = end - begin;
    result.ops = std::move(spans);
    for (const Op each : program_.communication) {
      const bool message = is_send(each.kind) || is_receive(each.kind);
      result.messages.push_back(message ? transfers.at(carried_by(each, placement_)) : Span{});
    }
    return result;
  }

  // A rank's reductions run one after the other, beside everything else; one starts when all ranks that hold the
  // weights have come to theirs. A rank that holds the weights twice takes part at its last.
  [[nodiscard]] std::optional<Time> last_reduction(const std::vector<Span>& spans) const {
    struct Reduction {
      int weights;
      Time reached;
    };
    std::vector<std::vector<Reduction>> queues;
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      auto& queue = queues.emplace_back();
      const auto [first, last] = ops_of(rank);
      for (Index slot = first; slot <= last; ++slot) {
        for (const Op each : program_.slot(rank, slot - first)) {
          if (each.kind != Kind::reduce_gradients) continue;
          const int weights = placement_.weights_of[each.stage];
          std::erase_if(queue, [&](const Reduction& other) { return other.weights == weights; });
          queue.push_back({weights, slot == first ? 0 : spans[slot - 1].end});
        }
      }
    }
    std::vector<Time> free(queues.size(), 0);
    Time latest = 0;
    for (bool any = true; any;) {
      any = false;
      for (int weights = 0; weights < placement_.stages(); ++weights) {
        const auto ranks = ranks_with(weights);
        const auto at_it = [&](std::size_t rank) {
          return !queues[rank].empty() && queues[rank][0].weights == weights;
        };
        if (ranks.empty() || !std::ranges::all_of(ranks, at_it)) continue;
        Time end = 0;
        for (const std::size_t rank : ranks) end = std::max({end, queues[rank][0].reached, free[rank]});
        end += durations_.of_reduction(weights, ranks.size());
        for (const std::size_t rank : ranks) queues[rank].erase(queues[rank].begin()), free[rank] = end;
        if (ranks.size() > 1) latest = std::max(latest, end);
        any = true;
      }
    }
    if (!std::ranges::all_of(queues, [](const auto& queue) { return queue.empty(); })) return std::nullopt;
    return latest;
  }
  [[nodiscard]] std::set<std::size_t> ranks_with(int weights) const {
    std::set<std::size_t> ranks;
    for (int stage = 0; stage < placement_.stages(); ++stage) {
      if (placement_.weights_of[static_cast<std::size_t>(stage)] == weights) {
        ranks.insert(static_cast<std::size_t>(rank_of(stage)));
      }
    }
    return ranks;
  }

  const Program& program_;
  const Placement& placement_;
  const Costs& costs_;
  Durations durations_;
  std::map<Value, Index> maker_;
};

// `latency`: an op starts when the op before it on its rank has ended and what it needs has arrived.
class LongestPath : Run {
 public:
  LongestPath(const Program& program, const Costs& costs) : Run(program, costs), nodes_(program.schedule.ops.size()) {}

  [[nodiscard]] std::optional<Result> run() {
    std::vector<Span> spans;
    for (Index i = 0; i < nodes_.size(); ++i) {
      const auto start = start_of(i);
      if (!start) return std::nullopt;
      spans.push_back({*start, *start + duration(unit_of(i))});
    }
    std::map<Value, Span> transfers;
    for (const auto& [value, maker] : maker_) {
      const Time released = spans[maker].start + release_after(maker);
      transfers[value] = {released, released + costs_.latency};
    }
    return result(std::move(spans), transfers);
  }

 private:
  struct Node {
    bool open = false;
    std::optional<Time> start;
  };

  // None where the op waits, by whatever way round, for itself.
  [[nodiscard]] std::optional<Time> start_of(Index i) {
    const auto unit = unit_of(i);
    Node& node = nodes_[unit[0]];
    if (node.start) return node.start;
    if (node.open) return std::nullopt;
    node.open = true;
    Time latest = 0;
    for (const auto& [needed, delay] : inputs_of(unit)) {
      const auto start = start_of(needed);
      if (!start) return std::nullopt;
      latest = std::max(latest, *start + delay);
    }
    node.start = latest;
    return latest;
  }

  // The ops that the unit waits for, and how long after their start it may run.
  [[nodiscard]] std::vector<std::pair<Index, Time>> inputs_of(const std::vector<Index>& unit) const {
    std::vector<std::pair<Index, Time>> inputs;
    const int rank = rank_of(op(unit[0]).stage);
    if (unit[0] > ops_of(rank).first) inputs.emplace_back(unit[0] - 1, duration(unit_of(unit[0] - 1)) + costs_.launch);
    for (const Index i : unit) {
      const auto value = needed_by(op(i), placement_);
      if (!value) continue;
      const Index maker = maker_.at(*value);
      const bool elsewhere = rank_of(value->stage) != rank;
      inputs.emplace_back(maker, release_after(maker) + (elsewhere ? costs_.latency : 0));
    }
    return inputs;
  }

  std::vector<Node> nodes_;
};

// `links` and `stream`, in order of time.
class Playout : Run {
 public:
  Playout(const Program& program, const Costs& costs) : Run(program, costs), spans_(program.schedule.ops.size()) {
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      ranks_.push_back({ops_of(rank).first, ops_of(rank).second});
      next_batch_.push_back(0);
      read_slots(rank);
    }
  }

  [[nodiscard]] std::optional<Result> run() {
    moments_.insert(0);
    while (!moments_.empty()) {
      now_ = *moments_.begin();
      moments_.erase(moments_.begin());
      while (start_ops() || start_messages()) {
      }
    }
    for (const auto& rank : ranks_) {
      if (rank.next < rank.end) return std::nullopt;
    }
    return result(std::move(spans_), transfers_);
  }

 private:
  struct RankState {
    Index next, end;  // ops
    Time free = 0;    // the op before has ended
    bool begun = false;
  };
  struct Batch {
    Index after;  // its slot comes before this op
    std::vector<Op> messages;
    bool started = false;
  };
  struct Link {
    std::vector<Value> messages;  // in program order
    std::size_t next = 0;
    Time free = 0;
  };

  void read_slots(int rank) {
    const auto [first, last] = ops_of(rank);
    auto& batches = batches_.emplace_back();
    for (Index slot = 0; slot <= last - first; ++slot) {
      bool joined = false;
      for (const Op message : program_.slot(rank, slot)) {
        if (!joined) batches.push_back({first + slot, {}});
        joined = message.with_next;
        if (!is_send(message.kind) && !is_receive(message.kind)) continue;
        batches.back().messages.push_back(message);
        const Value value = carried_by(message, placement_);
        if (is_send(message.kind)) {
          links_[{rank, rank_of(peer_stage(message))}].messages.push_back(value);
          sent_in_slot_[value] = first + slot;
        } else {
          received_in_[value] = {rank, batches.size() - 1};
        }
      }
    }
  }
  [[nodiscard]] int peer_stage(Op send) const {
    return send.kind == Kind::send_forward ? *placement_.next(send.stage) : *placement_.previous(send.stage);
  }

  void wake_at(Time time) {
    if (time > now_) moments_.insert(time);
  }

  bool start_ops() {
    bool any = false;
    for (auto& rank : ranks_) {
      if (rank.next == rank.end) continue;
      const auto unit = unit_of(rank.next);
      if (now_ < rank.free + (rank.begun ? costs_.launch : 0)) continue;
      if (!std::ranges::all_of(unit, [&](Index i) { return has_input(i); })) continue;
      const Span span{now_, now_ + duration(unit)};
      for (const Index i : unit) spans_[i] = span;
      for (const Index i : unit) {
        started_.insert(i);
        wake_at(now_ + release_after(i));
      }
      rank = {rank.next + unit.size(), rank.end, span.end, true};
      wake_at(span.end);
      wake_at(span.end + costs_.launch);
      any = true;
    }
    return any;
  }

  [[nodiscard]] bool has_input(Index i) const {
    const auto value = needed_by(op(i), placement_);
    if (!value) return true;
    if (rank_of(value->stage) == rank_of(op(i).stage)) return released(maker_.at(*value));
    if (costs_.model == CommunicationModel::links) return arrived(*value);
    // A batch completes as a whole.
    const auto [rank, batch] = received_in_.at(*value);
    return ended(batches_[static_cast<std::size_t>(rank)][batch]);
  }
  [[nodiscard]] bool released(Index i) const {
    return started_.contains(i) && spans_[i].start + release_after(i) <= now_;
  }
  [[nodiscard]] bool arrived(const Value& value) const {
    const auto found = transfers_.find(value);
    return found != transfers_.end() && found->second.end <= now_;
  }

  bool start_messages() { return costs_.model == CommunicationModel::links ? start_on_links() : start_on_streams(); }

  bool start_on_links() {
    bool any = false;
    for (auto& [ends, link] : links_) {
      if (link.next == link.messages.size() || link.free > now_) continue;
      const Value value = link.messages[link.next];
      if (!released(maker_.at(value)) || !issued(value)) continue;
      transfer(value);
      link.free = transfers_[value].end;
      ++link.next;
      any = true;
    }
    return any;
  }
  // The slot of the send is reached: at once after its op, or later where the program says so.
  [[nodiscard]] bool issued(const Value& value) const {
    const Index slot = sent_in_slot_.at(value);
    const auto unit = unit_of(maker_.at(value));
    return slot == unit.back() + 1 || reached(slot, rank_of(value.stage));
  }
  [[nodiscard]] bool reached(Index slot, int rank) const {
    const auto [first, last] = ops_of(rank);
    return slot == first || (started_.contains(slot - 1) && spans_[slot - 1].end <= now_);
  }

  bool start_on_streams() {
    bool any = false;
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      auto& batches = batches_[static_cast<std::size_t>(rank)];
      std::size_t& next = next_batch_[static_cast<std::size_t>(rank)];
      if (next == batches.size() || !reached(batches[next].after, rank)) continue;
      if (next > 0 && !ended(batches[next - 1])) continue;
      batches[next].started = true;
      for (const Op message : batches[next].messages) {
        const Value value = carried_by(message, placement_);
        if (++ends_ready_[value] == 2) transfer(value);
      }
      ++next;
      any = true;
    }
    return any;
  }
  [[nodiscard]] bool ended(const Batch& batch) const {
    return batch.started &&
           std::ranges::all_of(batch.messages, [&](Op message) { return arrived(carried_by(message, placement_)); });
  }

  void transfer(const Value& value) {
    transfers_[value] = {now_, now_ + durations_.of_message(value)};
    wake_at(transfers_[value].end);
  }

  Time now_ = 0;
  std::set<Time> moments_;  // at which something ends
  std::vector<RankState> ranks_;
  std::vector<Span> spans_;
  std::set<Index> started_;
  std::map<Value, Span> transfers_;                           // of the messages under way or arrived
  std::map<std::pair<int, int>, Link> links_;                 // by the ranks at its ends
  std::map<Value, Index> sent_in_slot_;                       // the slot before this op
  std::vector<std::vector<Batch>> batches_;                   // per rank, in the order of issue
  std::vector<std::size_t> next_batch_;                       // per rank
  std::map<Value, std::pair<int, std::size_t>> received_in_;  // rank and batch
  std::map<Value, int> ends_ready_;                           // of a message, whose batch has started
};

}  // namespace

std::optional<Result> simulate(const Program& program, const Costs& costs) {
  if (costs.model == CommunicationModel::latency) return LongestPath(program, costs).run();
  return Playout(program, costs).run();
}

}  // namespace dualpipe::oracle
