#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

#include "tests/oracle.h"

namespace dualpipe::oracle {

Memory memory(const Program& program, const Costs& costs, int rank) {
  const Placement& placement = program.schedule.placement;
  const auto ops = program.schedule.rank(rank);
  Bytes resident = 0;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    if (placement.rank_of[static_cast<std::size_t>(stage)] != rank) continue;
    resident += costs.of(stage).parameters + costs.of(stage).gradients + costs.of(stage).optimizer;
  }

  // What is held, by name, counted anew at every step: activations, stashes for W, and what stages have received or
  // wait to be taken by a stage of the same rank.
  enum What { activation, stash, forward_buffer, gradient_buffer };
  std::map<std::tuple<What, int, std::uint32_t>, Bytes> held;
  Memory memory;
  bool first = true;
  const auto look = [&](std::size_t position, Bytes workspace) {
    Bytes bytes = resident + workspace;
    int activations = 0;
    for (const auto& [name, size] : held) {
      bytes += size;
      activations += std::get<0>(name) == activation;
    }
    if (first || bytes > memory.peak) memory.peak = bytes, memory.peak_position = position;
    if (first || activations > memory.peak_activations) {
      memory.peak_activations = activations;
      memory.peak_activations_position = position;
    }
    first = false;
  };
  const auto start = [&](Op op) {
    if (op.kind != Kind::forward) return;
    held.erase({forward_buffer, op.stage, op.micro_batch});
    held[{activation, op.stage, op.micro_batch}] =
        costs.of(op.stage).recompute_activation.value_or(costs.of(op.stage).activation);
  };
  const auto is_here = [&](std::optional<int> stage) {
    return stage && placement.rank_of[static_cast<std::size_t>(*stage)] == rank;
  };
  const auto hand_over = [&](Op op) {
    const auto next = placement.next(op.stage);
    const auto previous = placement.previous(op.stage);
    if (op.kind == Kind::forward && is_here(next)) {
      held[{forward_buffer, *next, op.micro_batch}] = costs.of(op.stage).message;
    }
    if ((op.kind == Kind::backward || op.kind == Kind::input_gradient) && is_here(previous)) {
      held[{gradient_buffer, *previous, op.micro_batch}] = costs.of(*previous).message;
    }
  };
  const auto workspace_of = [&](Op op) {
    const StageCosts& stage = costs.of(op.stage);
    if (op.kind == Kind::forward) return stage.forward_workspace;
    if (op.kind == Kind::weight_gradient) return stage.weight_gradient_workspace;
    // The forward runs again, and what it did not hold is there until the op ends.
    const Bytes again = stage.activation - stage.recompute_activation.value_or(stage.activation);
    return again + (op.kind == Kind::backward ? stage.backward_workspace : stage.input_gradient_workspace);
  };
  const auto workspace_of_pair = [&](Op forward, Op backward) {
    const StageCosts& stage = costs.of(forward.stage);
    if (stage.overlapped_workspace) return *stage.overlapped_workspace;
    const Bytes output = placement.next(forward.stage) ? std::min(stage.message, stage.forward_workspace) : 0;
    return std::max(workspace_of(forward), output + workspace_of(backward));
  };
  const auto end = [&](Op op) {
    hand_over(op);
    if (op.kind == Kind::weight_gradient) held.erase({stash, op.stage, op.micro_batch});
    if (op.kind == Kind::input_gradient) held[{stash, op.stage, op.micro_batch}] = costs.of(op.stage).weight_stash;
    if (op.kind == Kind::forward || op.kind == Kind::weight_gradient) return;
    held.erase({activation, op.stage, op.micro_batch});
    held.erase({gradient_buffer, op.stage, op.micro_batch});
  };
  for (std::size_t i = 0; i <= ops.size(); ++i) {
    for (const Op message : program.slot(rank, i)) {
      if (message.kind == Kind::receive_forward) {
        held[{forward_buffer, message.stage, message.micro_batch}] =
            costs.of(*placement.previous(message.stage)).message;
      } else if (message.kind == Kind::receive_backward) {
        held[{gradient_buffer, message.stage, message.micro_batch}] = costs.of(message.stage).message;
      }
    }
    look(i, 0);
    if (i == ops.size()) break;
    const std::size_t last = ops[i].with_next ? i + 1 : i;
    for (std::size_t j = i; j <= last; ++j) start(ops[j]);
    look(i, i == last ? workspace_of(ops[i]) : workspace_of_pair(ops[i], ops[last]));
    for (std::size_t j = i; j <= last; ++j) end(ops[j]);
    i = last;
  }
  return memory;
}

}  // namespace dualpipe::oracle
