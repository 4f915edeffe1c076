// 1F1B with a flush (PipeDream-Flush, arXiv:2006.09503). Rank r runs min(P-1-r, M) forwards to warm up, then a forward
// and a backward in turn, then the backwards that are left; it never holds more than P-r activations, where GPipe holds
// M.
//
// Drawing: 1f1b, 3 ranks, 4 micro-batches; F = 1, B = 2
//
//   rank 0: F0 F1 F2 .  .  .  .  B0 -- F3 B1 -- .  B2 -- .  B3 --
//   rank 1: .  F0 F1 .  .  B0 -- F2 B1 -- F3 B2 -- .  B3 -- .  .
//   rank 2: .  .  F0 B0 -- F1 B1 -- F2 B2 -- F3 B3 -- .  .  .  .
//
// Shapes: any.
// Bubble (P-1)(F+B). Peak activations min(M, P-r).
#include <algorithm>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

void one_f_one_b_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    const auto warm_up = std::min<std::int64_t>(shape.ranks - 1 - rank, shape.micro_batches);
    for (std::int64_t i = 0; i < warm_up; ++i) builder.forward(rank, i);
    for (std::int64_t i = warm_up; i < shape.micro_batches; ++i) {
      builder.forward(rank, i);
      builder.backward(rank, i - warm_up);
    }
    for (std::int64_t i = shape.micro_batches - warm_up; i < shape.micro_batches; ++i) builder.backward(rank, i);
  }
}

}  // namespace

Family one_f_one_b() {
  return {.name = "1f1b",
          .title = "1F1B with a flush (PipeDream-Flush)",
          .paper = "arXiv:2006.09503",
          .rule = "any shape",
          .is_in_first_table = true,
          .placement = straight_placement,
          .order = one_f_one_b_order,
          .bubble = flush_bubble};
}

}  // namespace dualpipe::detail::generate
