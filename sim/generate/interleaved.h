// Interleaved 1F1B (Megatron-LM, arXiv:2104.04473, section 2.2; PyTorch's ScheduleInterleaved1F1B). A rank holds V
// stages ("chunks"), P apart. Micro-batches go in rounds of n: a round passes chunk 0, then chunk 1, …, and backwards
// the chunks in reverse. Rank r warms up with (V-1)n + 2(P-1-r) forwards, then runs a forward and a backward in turn.
//
// Drawing: interleaved, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 1
//
//   rank 0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
//   rank 1: .   1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 .
//
// Shapes: M divisible by the number of rounds, max(1, M / P rounded down); n = M / rounds. (Megatron-LM takes only
// n = P.)
// Bubble (P-1)(F+B) of one stage where n = P: V times less, relative to a rank's work, than 1F1B's.
// Peak activations, in stages: warm-up + 1.
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule interleaved(const Shape& shape);

}  // namespace dualpipe
