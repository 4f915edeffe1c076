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
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule one_f_one_b(const Shape& shape);

}  // namespace dualpipe
