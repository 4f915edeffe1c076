#include "dualpipe/sim/simulate/execute.h"

#include <algorithm>
#include <cassert>
#include <type_traits>
#include <utility>

#include "dualpipe/sim/simulate/engine.h"
#include "dualpipe/sim/simulate/models.h"
#include "dualpipe/sim/simulate/reductions.h"

namespace dualpipe::detail::simulate {
namespace {

// A lane that may be waiting. From each that does, `wait_of` leads to the lane it waits for.
struct Node {
  Wait::Lane lane;
  int rank;

  friend bool operator==(const Node&, const Node&) = default;
};

template <typename Model>
class BlockingCycle {
 public:
  explicit BlockingCycle(Engine<Model>& engine) : engine_(engine), schedule_(engine.program().schedule) {}

  // Follows the waits from any rank that is stuck until they come round.
  [[nodiscard]] Deadlock find() {
    int rank = 0;
    while (position(rank) == schedule_.rank(rank).size()) ++rank;
    std::vector<Node> path;
    std::vector<Wait> waits;
    Node node{Wait::Lane::compute, rank};
    auto known = path.end();
    while (known == path.end()) {
      path.push_back(node);
      const auto [wait, next] = wait_of(node);
      waits.push_back(wait);
      node = next;
      known = std::ranges::find(path, node);
    }
    return {std::vector<Wait>(waits.begin() + (known - path.begin()), waits.end())};
  }

 private:
  [[nodiscard]] std::size_t position(int rank) const { return engine_.position(static_cast<std::size_t>(rank)); }
  [[nodiscard]] int rank_of(Op op) const { return schedule_.placement.rank_of[op.stage]; }

  [[nodiscard]] std::pair<Wait, Node> wait_of(Node node) {
    if constexpr (std::is_same_v<Model, StreamModel>) {
      if (node.lane == Wait::Lane::communication) return communication_wait(node.rank);
    }
    return compute_wait(node.rank);
  }

  // The rank's next op has no input yet.
  [[nodiscard]] std::pair<Wait, Node> compute_wait(int rank) {
    const auto ops = schedule_.rank(rank);
    const auto has_input = [&](Op op) {
      const Task& task = engine_.tasks().of(op);
      return task.in == nullptr || task.in->arrivals.find(op.micro_batch) != nullptr;
    };
    std::size_t at = position(rank);
    if (ops[at].with_next && has_input(ops[at])) ++at;  // the pair's other half
    const Op starved{ops[at].micro_batch, ops[at].stage, ops[at].kind, false};
    const Op receive = receive_for(starved);
    if constexpr (std::is_same_v<Model, StreamModel>) {
      return {{Wait::Lane::compute, rank, at, starved, receive}, {Wait::Lane::communication, rank}};
    } else {
      return {{Wait::Lane::compute, rank, at, starved, missing_for(receive)},
              {Wait::Lane::compute, rank_of(peer_of(receive, schedule_.placement))}};
    }
  }

  // What another rank has not done: the op whose result the receive is for, or if that ran, its send.
  [[nodiscard]] Op missing_for(Op receive) const {
    const Op send = peer_of(receive, schedule_.placement);
    const auto ops = schedule_.rank(rank_of(send));
    const auto makes = [&](Op op) { return op.kind != Kind::weight_gradient && key_of(op) == key_of(send); };
    const auto producer = std::ranges::find_if(ops, makes);
    if (static_cast<std::size_t>(producer - ops.begin()) < position(rank_of(send))) return send;
    return {producer->micro_batch, producer->stage, producer->kind, false};
  }

  // The rank's batch under way has a message whose other end has not started. (There is one: the op that waits needs a
  // receive in a slot that its rank has passed, so in a batch that has started, or stands behind one that has.)
  [[nodiscard]] std::pair<Wait, Node> communication_wait(int rank) {
    const auto r = static_cast<std::size_t>(rank);
    StreamModel& model = engine_.model();
    const Program& program = engine_.program();
    const auto waits = [&](Op op) {
      if (!is_send(op.kind) && !is_receive(op.kind)) return false;
      return model.waits(engine_.tasks().index_of(engine_.tasks().box_of(op)), op.micro_batch);
    };
    std::uint32_t i = model.batch_begin(r);
    while (!waits(program.communication[i])) ++i;
    assert(i < model.next(r));
    Op op = program.communication[i];
    op.with_next = false;
    const Op other = peer_of(op, schedule_.placement);
    return {{Wait::Lane::communication, rank, slot_of(rank, i), op, other},
            {Wait::Lane::communication, rank_of(other)}};
  }

  [[nodiscard]] std::size_t slot_of(int rank, std::uint32_t message) const {
    const Program& program = engine_.program();
    const std::size_t first = program.slot_index(rank, 0);
    const auto begins = std::span(program.slot_begin).subspan(first, schedule_.rank(rank).size() + 1);
    return static_cast<std::size_t>(std::ranges::upper_bound(begins, message) - begins.begin()) - 1;
  }

  Engine<Model>& engine_;
  const Schedule& schedule_;
};

// The reductions of every rank, with the time at which it came to them.
template <typename Model>
std::vector<std::vector<Reduction>> reached_reductions(const Engine<Model>& engine, const Program& program) {
  std::vector<std::vector<Reduction>> reductions(static_cast<std::size_t>(program.schedule.ranks()));
  for (std::size_t r = 0; r < reductions.size(); ++r) {
    const auto stops = engine.stops(r);
    for (std::size_t i = 0; i < stops.size(); ++i) {
      const std::size_t slot = program.slot_index(static_cast<int>(r), stops[i]);
      for (std::uint32_t at = program.slot_begin[slot]; at < program.slot_begin[slot + 1]; ++at) {
        if (program.communication[at].kind != Kind::reduce_gradients) continue;
        reductions[r].push_back({static_cast<int>(r), stops[i], at, engine.stop_times(r)[i]});
      }
    }
  }
  return reductions;
}

// Both ends of a message have its span; what takes no time happens when its slot is reached.
template <typename Model>
std::vector<Span> communication_spans(Engine<Model>& engine, const std::vector<Span>& ops, const Reduced& reduced) {
  const Program& program = engine.program();
  std::vector<Span> spans(program.communication.size());
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const std::size_t begin = program.schedule.rank_begin[static_cast<std::size_t>(rank)];
    const std::size_t count = program.schedule.rank(rank).size();
    for (std::size_t position = 0; position <= count; ++position) {
      const Time reached = position == 0 ? 0 : ops[begin + position - 1].end;
      const std::size_t slot = program.slot_index(rank, position);
      for (std::uint32_t i = program.slot_begin[slot]; i < program.slot_begin[slot + 1]; ++i) {
        const Op op = program.communication[i];
        const bool message = is_send(op.kind) || is_receive(op.kind);
        spans[i] = message ? engine.message_span(engine.tasks().box_of(op), op.micro_batch) : Span{reached, reached};
      }
    }
  }
  for (const auto& [index, span] : reduced.spans) spans[index] = span;
  return spans;
}

template <typename Model>
Outcome execute_with(const Program& program, const Costs& costs, Record record) {
  Engine<Model> engine(program, costs, record);
  if (!engine.run()) return {{}, BlockingCycle(engine).find()};

  const Reduced reduced = reduce(program, costs, reached_reductions(engine, program));
  if (reduced.deadlock) return {{}, reduced.deadlock};

  Timeline timeline;
  timeline.reduced = reduced.last_end;
  for (std::size_t r = 0; r < static_cast<std::size_t>(program.schedule.ranks()); ++r) {
    timeline.ranks.push_back(engine.times(r));
  }
  timeline.ops = engine.take_op_spans();
  if (record == Record::spans) timeline.communication = communication_spans(engine, timeline.ops, reduced);
  return {std::move(timeline), std::nullopt};
}

}  // namespace

Outcome execute(const Program& program, const Costs& costs, Record record) {
  switch (costs.model) {
    case CommunicationModel::latency:
      return execute_with<LatencyModel>(program, costs, record);
    case CommunicationModel::links:
      return execute_with<LinksModel>(program, costs, record);
    case CommunicationModel::stream:
      return execute_with<StreamModel>(program, costs, record);
  }
  return {};
}

}  // namespace dualpipe::detail::simulate
