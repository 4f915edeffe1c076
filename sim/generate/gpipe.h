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
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule gpipe(const Shape& shape);

}  // namespace dualpipe
