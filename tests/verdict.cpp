#include "tests/verdict.h"

#include <algorithm>
#include <optional>
#include <ostream>
#include <sstream>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/oracle.h"
#include "tests/support.h"

namespace dualpipe::test {

namespace {

// The first difference between figures, by name.
class Differences {
 public:
  template <typename Value>
  void compare(const std::string& what, const Value& ours, const Value& oracles) {
    if (ours == oracles || !text_.str().empty()) return;
    text_ << what << " is " << ours << ", the oracle says " << oracles;
  }
  [[nodiscard]] std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

void compare_times(Differences& differences, const Program& program, const Timeline& ours,
                   const oracle::Result& oracles) {
  const Schedule& schedule = program.schedule;
  differences.compare("the number of op spans", ours.ops.size(), oracles.ops.size());
  differences.compare("the number of message spans", ours.communication.size(), oracles.messages.size());
  if (!differences.text().empty()) return;
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    differences.compare("the time of " + to_text(schedule.ops[i]), ours.ops[i], oracles.ops[i]);
  }
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Op op = program.communication[i];
    if (!is_send(op.kind) && !is_receive(op.kind)) continue;
    differences.compare("the time of " + to_text(op), ours.communication[i], oracles.messages[i]);
  }
  for (std::size_t r = 0; r < oracles.ranks.size(); ++r) {
    const std::string rank = " of rank " + std::to_string(r);
    differences.compare("the first start" + rank, ours.ranks[r].first_start, oracles.ranks[r].first_start);
    differences.compare("the last end" + rank, ours.ranks[r].last_end, oracles.ranks[r].last_end);
    differences.compare("the busy time" + rank, ours.ranks[r].busy, oracles.ranks[r].busy);
    differences.compare("the idle time" + rank, ours.idle(static_cast<int>(r)),
                        oracles.makespan - oracles.ranks[r].busy);
  }
  differences.compare("the makespan", ours.makespan(), oracles.makespan);
  differences.compare("the span", ours.span(), oracles.span);
  differences.compare("the end of the last reduction", ours.reduced, oracles.reduced);
}

void compare_memory(Differences& differences, const Program& program, const Costs& costs) {
  for (int r = 0; r < program.schedule.ranks(); ++r) {
    const RankMemory ours = rank_memory(program, costs, r);
    const oracle::Memory oracles = oracle::memory(program, costs, r);
    const std::string rank = " of rank " + std::to_string(r);
    differences.compare("the peak" + rank, ours.peak, oracles.peak);
    differences.compare("the position of the peak" + rank, ours.peak_position, oracles.peak_position);
    differences.compare("the peak activations" + rank, ours.peak_activations, oracles.peak_activations);
    differences.compare("the position of the peak activations" + rank, ours.peak_activations_position,
                        oracles.peak_activations_position);
  }
}

}  // namespace

std::string difference_from_oracle(const Program& program, const Costs& costs) {
  const auto oracles = oracle::simulate(program, costs);
  const bool hangs = find_deadlock(program, costs.model).has_value();
  if (hangs == oracles.has_value())
    return hangs ? "a deadlock, where the oracle sees none" : "no deadlock, where the oracle hangs";
  std::optional<Timeline> ours;
  try {
    ours = simulate(program, costs, Record::spans);
  } catch (const DeadlockError&) {
  }
  if (ours.has_value() != oracles.has_value()) return "find_deadlock() and simulate() disagree";
  if (!ours) return {};
  Differences differences;
  compare_times(differences, program, *ours, *oracles);
  compare_memory(differences, program, costs);
  if (simulate(program, costs, Record::ranks).ranks != ours->ranks) return "Record::ranks and Record::spans disagree";
  return differences.text();
}

namespace {

bool same_op(Op a, Op b) { return a.kind == b.kind && a.stage == b.stage && a.micro_batch == b.micro_batch; }

// Where things stand in a rank.
class Places {
 public:
  Places(const Program& program, int rank) : program_(program), rank_(rank) {}

  [[nodiscard]] std::optional<std::size_t> of_op(Op op) const {
    const auto ops = program_.schedule.rank(rank_);
    const auto found = std::ranges::find_if(ops, [&](Op each) { return same_op(each, op); });
    return found == ops.end() ? std::nullopt : std::optional(static_cast<std::size_t>(found - ops.begin()));
  }
  // Where the op, or pair, begins that the op at `position` belongs to.
  [[nodiscard]] std::size_t unit_of(std::size_t position) const {
    return position > 0 && program_.schedule.rank(rank_)[position - 1].with_next ? position - 1 : position;
  }
  struct InSlot {
    std::size_t slot;
    std::size_t batch;  // counted over the rank
  };
  [[nodiscard]] std::optional<InSlot> of_message(Op message) const {
    std::size_t batch = 0;
    for (std::size_t slot = 0; slot <= program_.schedule.rank(rank_).size(); ++slot) {
      for (const Op each : program_.slot(rank_, slot)) {
        if (same_op(each, message)) return InSlot{slot, batch};
        batch += !each.with_next;
      }
    }
    return std::nullopt;
  }

 private:
  const Program& program_;
  int rank_;
};

// What the op needs from elsewhere, as its receive; none for an op that needs nothing.
std::optional<Op> awaited_receive(Op op) {
  if (op.kind == Kind::forward) return Op{op.micro_batch, op.stage, Kind::receive_forward, false};
  if (is_backward_half(op.kind)) return Op{op.micro_batch, op.stage, Kind::receive_backward, false};
  return std::nullopt;
}

// The op that makes what is sent, of either kind of backward.
bool makes(Op op, Op send) {
  const bool right_kind = send.kind == Kind::send_forward ? op.kind == Kind::forward : is_backward_half(op.kind);
  return right_kind && op.stage == send.stage && op.micro_batch == send.micro_batch;
}

// An op waits for its receive on its own rank (stream), or for its maker or the send on the other one.
std::string flaw_of_compute(const Wait& wait, const Wait& next, const Program& program) {
  const auto position = Places(program, wait.rank).of_op(wait.op);
  if (position != wait.position) return "is not at its position";
  const auto receive = awaited_receive(wait.op);
  if (!receive) return "needs nothing";
  const Places theirs(program, next.rank);
  if (same_op(wait.awaited, *receive)) {
    if (next.rank != wait.rank || next.lane != Wait::Lane::communication) return "its own stream is not next";
    return theirs.of_message(next.op)->batch <= theirs.of_message(*receive)->batch
               ? ""
               : "its receive comes before the next";
  }
  const Op send = peer_of(*receive, program.schedule.placement);
  if (program.schedule.placement.rank_of[send.stage] != next.rank) return "its sender is not next";
  if (next.lane != Wait::Lane::compute) return "its sender's computation is not next";
  if (makes(wait.awaited, send))
    return *theirs.of_op(wait.awaited) >= theirs.unit_of(next.position) ? "" : "its maker has run";
  if (!same_op(wait.awaited, send)) return "does not need what it waits for";
  return theirs.of_message(send)->slot > next.position ? "" : "its send was issued";
}

// A message waits for its other end, which stands behind the next link.
std::string flaw_of_communication(const Wait& wait, const Wait& next, const Program& program) {
  if (same_op(wait.awaited, wait.op)) return "waits for itself";
  if (!same_op(wait.awaited, peer_of(wait.op, program.schedule.placement))) return "does not wait for its other end";
  if (program.schedule.placement.rank_of[wait.awaited.stage] != next.rank) return "its other end is not next";
  if (next.lane != Wait::Lane::communication) return "its other end's stream is not next";
  const Places theirs(program, next.rank);
  return theirs.of_message(next.op)->batch < theirs.of_message(wait.awaited)->batch ? "" : "its other end has started";
}

// A reduction waits for the same weights' on another rank.
std::string flaw_of_reduction(const Wait& wait, const Wait& next, const Program& program) {
  const Placement& placement = program.schedule.placement;
  if (wait.awaited.kind != Kind::reduce_gradients || wait.op.kind != Kind::reduce_gradients) return "is no reduction";
  if (placement.weights_of[wait.op.stage] != placement.weights_of[wait.awaited.stage]) return "waits for other weights";
  if (placement.rank_of[wait.awaited.stage] != next.rank || next.rank == wait.rank) return "its peer is not next";
  if (next.lane != Wait::Lane::reduction) return "its peer's reductions are not next";
  const Places theirs(program, next.rank);
  return theirs.of_message(next.op)->batch < theirs.of_message(wait.awaited)->batch ? "" : "its peer has come to it";
}

std::string flaw_of(const Wait& wait, const Wait& next, const Program& program) {
  if (wait.lane == Wait::Lane::compute) return flaw_of_compute(wait, next, program);
  const auto place = Places(program, wait.rank).of_message(wait.op);
  if (!place || place->slot != wait.position) return "is not in its slot";
  return wait.lane == Wait::Lane::communication ? flaw_of_communication(wait, next, program)
                                                : flaw_of_reduction(wait, next, program);
}

}  // namespace

std::string flaw_of(const Deadlock& deadlock, const Program& program) {
  if (deadlock.cycle.empty()) return "there is no cycle";
  for (std::size_t i = 0; i < deadlock.cycle.size(); ++i) {
    const Wait& wait = deadlock.cycle[i];
    const std::string flaw = flaw_of(wait, deadlock.cycle[(i + 1) % deadlock.cycle.size()], program);
    if (!flaw.empty()) return to_text(wait.op) + " " + flaw;
  }
  return {};
}

}  // namespace dualpipe::test
