// The two handcrafted zero-bubble schedules (arXiv:2401.10241, sections 2.1 and 2.2), one order with k = 1 and k = 2.
// The backward is split: I, whose result the previous rank waits for, at once; W, for which nobody waits, later, where
// the rank would idle. Rank r warms up with k(P-1-r) forwards, and its W lag k r micro-batches behind its I.
//
// ZB-H1 (k = 1; DeepSeek calls it ZB1P, PyTorch's InterleavedZeroBubble with one chunk is the same) holds as many
// activations as 1F1B's first rank. ZB-H2 (k = 2) holds twice as many and has, when F = I = W, no bubble by span.
//
// Drawing: zb1p, 3 ranks, 4 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3
//   rank 1: .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
//
// Drawing: zb-h2, 3 ranks, 6 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5 .  .
//   rank 1: .  F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 I4 W2 I5 W3 W4 W5 .
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 W2 W3 W4 W5
//
// Shapes: any.
// Bubble of ZB-H1: (P-1) max(F+I-W, F, I); published as (P-1)(F+B-2W), which needs W <= min(F, I). Of ZB-H2, by span:
// (P-1)(F+I-2W). Peak memory P M_B and (2P-1) M_B.
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule zb_h1(const Shape& shape);
[[nodiscard]] Schedule zb_h2(const Shape& shape);

}  // namespace dualpipe
