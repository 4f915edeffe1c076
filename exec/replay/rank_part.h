// What a rank has of a Program: its ops and messages, and its stages with their neighbours. A program may come from a
// file, or be made by hand: all that can be seen of it before it runs is checked here. Private to exec/replay.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::replay {

// Who is next to a stage in its chain, and its number among the stages of this rank if it is one of them.
struct Neighbour {
  enum class Where : std::uint8_t { nowhere, this_rank, other_rank };
  Where where = Where::nowhere;
  std::size_t index = 0;
};

struct HeldStage {
  Stage* stage = nullptr;  // null: another rank's
  std::size_t index = 0;   // among those of this rank
  Neighbour previous;
  Neighbour next;
};

// Throws InputError where the program is not of one piece, or has no such rank.
void check_rank(const Program& program, int rank);

// Of all slots of the rank.
[[nodiscard]] std::span<const Op> messages_of(const Program& program, int rank);

// By stage. Throws InputError where a stage of the rank is missing in `stages`.
[[nodiscard]] std::vector<HeldStage> held_stages(const Placement& placement, int rank, std::span<Stage* const> stages);

// Throws InputError, in the words of validate(), where the rank cannot do one of its ops or messages, whatever the
// others do. That they come in an order in which it can do them shows when it runs.
void check_ops(const Program& program, int rank, std::span<const HeldStage> held);

// What a stage made in an op for the one next to it. Throws InputError unless there is a tensor, and none has a graph.
void check_made(Op op, const Tensors& made);

// The loss that the last stage of a chain made in an F, by itself. Throws InputError unless it is one number, without a
// graph. It is kept to the end of the step, and so no more of it than the number: at::mse_loss() computes both a loss
// and what it reduces to that in one storage.
[[nodiscard]] at::Tensor loss_of(Op op, Tensors made);

}  // namespace dualpipe::detail::replay
