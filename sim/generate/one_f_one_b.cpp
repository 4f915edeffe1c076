// 1F1B with a flush (PipeDream-Flush, arXiv:2006.09503). Rank r runs min(P-1-r, M) forwards to warm up, then a forward
// and a backward in turn, then the backwards that are left; it never holds more than P-r activations, where GPipe holds
// M.
//
// Eager 1F1B (On Optimizing the Communication of Model Parallelism, arXiv:2211.05322; Alpa's 1f1b_overlap_friendly)
// warms up with 2(P-1-r): a rank has the inputs of its next forward one op sooner, so that they can travel while it
// computes. A latency c adds 2(P-1)c to a run, where it adds [2(P-1)M/P + 2(P-2)]c to one of 1F1B.
//
// Drawing: 1f1b, 3 ranks, 4 micro-batches; F = 1, B = 2
//
//   rank 0: F0 F1 F2 .  .  .  .  B0 -- F3 B1 -- .  B2 -- .  B3 --
//   rank 1: .  F0 F1 .  .  B0 -- F2 B1 -- F3 B2 -- .  B3 -- .  .
//   rank 2: .  .  F0 B0 -- F1 B1 -- F2 B2 -- F3 B3 -- .  .  .  .
//
// Drawing: eager-1f1b, 3 ranks, 4 micro-batches; F = 1, B = 2
//
//   rank 0: F0 F1 F2 F3 .  .  .  B0 -- .  B1 -- .  B2 -- .  B3 --
//   rank 1: .  F0 F1 F2 .  B0 -- F3 B1 -- .  B2 -- .  B3 -- .  .
//   rank 2: .  .  F0 B0 -- F1 B1 -- F2 B2 -- F3 B3 -- .  .  .  .
//
// Shapes: any.
// Bubble (P-1)(F+B). Peak activations min(M, P-r); of Eager 1F1B min(M, 2(P-r)-1).
#include <algorithm>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// Warms up with `k` forwards for every rank behind this one.
template <std::int64_t k>
void one_f_one_b_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    const auto warm_up = std::min<std::int64_t>(k * (shape.ranks - 1 - rank), shape.micro_batches);
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
          .order = one_f_one_b_order<1>,
          .bubble = flush_bubble};
}

Family eager_one_f_one_b() {
  return {.name = "eager-1f1b",
          .title = "1F1B with twice the warm-up, which hides the forward's messages",
          .paper = "arXiv:2211.05322",
          .rule = "any shape",
          .placement = straight_placement,
          .order = one_f_one_b_order<2>,
          .bubble = flush_bubble};
}

}  // namespace dualpipe::detail::generate
