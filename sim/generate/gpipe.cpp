// GPipe (arXiv:1811.06965): all forwards, then all backwards in the same order. Simple, and a rank holds all M
// activations.
//
// Drawing: gpipe, 3 ranks, 4 micro-batches; F = 1, B = 2
//
//   rank 0: F0 F1 F2 F3 .  .  .  .  .  .  B0 -- B1 -- B2 -- B3 --
//   rank 1: .  F0 F1 F2 F3 .  .  .  B0 -- B1 -- B2 -- B3 -- .  .
//   rank 2: .  .  F0 F1 F2 F3 B0 -- B1 -- B2 -- B3 -- .  .  .  .
//
// Shapes: any.
// Bubble (P-1)(F+B). Peak activations M.
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

void gpipe_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.forward(rank, i);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.backward(rank, i);
  }
}

}  // namespace

Family gpipe() {
  return {.name = "gpipe",
          .title = "GPipe: all forwards, then all backwards",
          .paper = "arXiv:1811.06965",
          .rule = "any shape",
          .placement = straight_placement,
          .order = gpipe_order,
          .bubble = flush_bubble};
}

}  // namespace dualpipe::detail::generate
