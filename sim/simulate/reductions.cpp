#include "dualpipe/sim/simulate/reductions.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "dualpipe/sim/simulate/tasks.h"

namespace dualpipe::detail::simulate {
namespace {

// The ranks that share one set of weights.
struct Group {
  std::set<int> ranks;
  int stage = 0;             // one of them
  std::vector<int> arrived;  // ranks whose lane is at this reduction
  Time start = 0;
};

class Lanes {
 public:
  Lanes(const Program& program, const Costs& costs, const std::vector<std::vector<Reduction>>& reductions)
      : program_(program), costs_(costs), lanes_(reductions.size()) {
    const Placement& placement = program.schedule.placement;
    for (int stage = 0; stage < placement.stages(); ++stage) {
      Group& group = groups_[weights_of(stage)];
      group.ranks.insert(placement.rank_of[static_cast<std::size_t>(stage)]);
      group.stage = stage;
    }
    for (std::size_t rank = 0; rank < reductions.size(); ++rank) queue_up(lanes_[rank], reductions[rank]);
  }

  [[nodiscard]] Reduced run() {
    for (std::size_t rank = 0; rank < lanes_.size(); ++rank) arrive(rank);
    for (const auto& lane : lanes_) {
      if (lane.next < lane.queue.size()) {
        reduced_.deadlock = cycle_from(static_cast<int>(&lane - lanes_.data()));
        break;
      }
    }
    return std::move(reduced_);
  }

 private:
  struct Lane {
    std::vector<Reduction> queue;
    std::size_t next = 0;
    Time free = 0;
  };

  [[nodiscard]] int weights_of(int stage) const {
    return program_.schedule.placement.weights_of[static_cast<std::size_t>(stage)];
  }
  [[nodiscard]] Op op_of(const Reduction& reduction) const { return program_.communication[reduction.index]; }

  // Only the last of a rank's reductions of the same weights meets the other ranks; those before are done at once.
  void queue_up(Lane& lane, const std::vector<Reduction>& reductions) {
    std::map<int, std::uint32_t> last;
    for (const Reduction& each : reductions) last[weights_of(op_of(each).stage)] = each.index;
    for (const Reduction& each : reductions) {
      if (last[weights_of(op_of(each).stage)] == each.index) {
        lane.queue.push_back(each);
      } else {
        reduced_.spans.push_back({each.index, {each.reached, each.reached}});
      }
    }
  }

  // The lane comes to its next reduction; the last rank to come sets the group going, and then all lanes go on.
  void arrive(std::size_t first) {
    std::vector<std::size_t> pending{first};
    while (!pending.empty()) {
      const std::size_t rank = pending.back();
      pending.pop_back();
      Lane& lane = lanes_[rank];
      if (lane.next == lane.queue.size()) continue;
      const Reduction& reduction = lane.queue[lane.next];
      Group& group = groups_[weights_of(op_of(reduction).stage)];
      group.arrived.push_back(static_cast<int>(rank));
      group.start = std::max({group.start, lane.free, reduction.reached});
      if (group.arrived.size() < group.ranks.size()) continue;
      complete(group);
      for (const int each : group.arrived) pending.push_back(static_cast<std::size_t>(each));
    }
  }

  void complete(const Group& group) {
    const Time end = group.start + Tasks::reduction_time(costs_, group.stage, group.ranks.size());
    for (const int rank : group.arrived) {
      Lane& lane = lanes_[static_cast<std::size_t>(rank)];
      reduced_.spans.push_back({lane.queue[lane.next++].index, {group.start, end}});
      lane.free = end;
    }
    if (group.ranks.size() > 1) reduced_.last_end = std::max(reduced_.last_end, end);
  }

  // Whom a stuck lane waits for: a rank of its group whose lane stands elsewhere.
  [[nodiscard]] Deadlock cycle_from(int rank) {
    std::vector<int> path;
    while (std::ranges::find(path, rank) == path.end()) {
      path.push_back(rank);
      rank = absent_peer(rank);
    }
    Deadlock deadlock;
    for (auto at = std::ranges::find(path, rank); at != path.end(); ++at) {
      const Lane& lane = lanes_[static_cast<std::size_t>(*at)];
      const Reduction& stuck = lane.queue[lane.next];
      const Op op = op_of(stuck);
      deadlock.cycle.push_back({Wait::Lane::reduction, *at, stuck.position, op, peer_op(op, absent_peer(*at))});
    }
    return deadlock;
  }

  [[nodiscard]] int absent_peer(int rank) {
    const Lane& lane = lanes_[static_cast<std::size_t>(rank)];
    const Group& group = groups_[weights_of(op_of(lane.queue[lane.next]).stage)];
    return *std::ranges::find_if(
        group.ranks, [&](int each) { return std::ranges::find(group.arrived, each) == group.arrived.end(); });
  }

  // The reduction of the same weights that is in that rank's lane.
  [[nodiscard]] Op peer_op(Op op, int rank) const {
    const auto& queue = lanes_[static_cast<std::size_t>(rank)].queue;
    return op_of(*std::ranges::find_if(
        queue, [&](const Reduction& each) { return weights_of(op_of(each).stage) == weights_of(op.stage); }));
  }

  const Program& program_;
  const Costs& costs_;
  std::map<int, Group> groups_;  // by weights
  std::vector<Lane> lanes_;      // by rank
  Reduced reduced_;
};

}  // namespace

Reduced reduce(const Program& program, const Costs& costs, const std::vector<std::vector<Reduction>>& reductions) {
  return Lanes(program, costs, reductions).run();
}

}  // namespace dualpipe::detail::simulate
