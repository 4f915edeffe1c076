// Looped breadth-first (arXiv:2211.05953; PyTorch's ScheduleLoopedBFS). A rank holds V stages, P apart: all forwards of
// chunk 0, all of chunk 1, …; then the backwards from the last chunk on, each from the last micro-batch to the first.
//
// Drawing: looped-bfs, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 1
//
//   rank 0: 0F0 0F1 0F2 0F3 2F0 2F1 2F2 2F3 .   .   2B3 2B2 2B1 2B0 0B3 0B2 0B1 0B0
//   rank 1: .   1F0 1F1 1F2 1F3 3F0 3F1 3F2 3F3 3B3 3B2 3B1 3B0 1B3 1B2 1B1 1B0 .
//
// Shapes: any.
// Bubble (P-1)(F+B) of one stage for M >= P. Peak activations, in stages: V M.
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

void looped_bfs_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.forward(chunk * shape.ranks + rank, i);
    }
    for (int chunk = shape.chunks - 1; chunk >= 0; --chunk) {
      for (std::int64_t i = shape.micro_batches - 1; i >= 0; --i) builder.backward(chunk * shape.ranks + rank, i);
    }
  }
}

}  // namespace

Family looped_bfs() {
  return {.name = "looped-bfs",
          .title = "all forwards chunk by chunk, then all backwards",
          .paper = "arXiv:2211.05953",
          .rule = "any shape",
          .takes_chunks = true,
          .placement = straight_placement,
          .order = looped_bfs_order,
          .bubble = looped_bubble};
}

}  // namespace dualpipe::detail::generate
