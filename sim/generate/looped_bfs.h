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
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule looped_bfs(const Shape& shape);

}  // namespace dualpipe
