// DualPipe (DeepSeek-V3, arXiv:2412.19437, section 3.2.1) and DualPipeV, the "cut in half" schedule that halves its
// ranks (https://github.com/deepseek-ai/DualPipe). One order over two placements:
//
//   DualPipe   two chains over the same layers, entering at rank 0 and at rank P-1; every rank holds a stage of each.
//   DualPipeV  one chain that turns round at the last rank: rank r holds stages r and 2P-1-r. It is the first P ranks
//              of DualPipe(2P, 2M), with "the far chain" read as "the second half of the chain".
//
// Drawing: dualpipe, 4 ranks, 8 micro-batches; F = 1, B = 2, W = 1, F&B = 2
//
//   rank 0: 0F0 0F1 0F2 7F0 7I0 7W0 7F1 0F3&7B1 .   7F2&0B0 7B2 --  7F3&0B1 7B3 --  0I2 0W2 0I3 0W3
//   rank 1: .   1F0 6F0 1F1 6F1 1F2 6B0 --  6F2&1B0 1F3&6B1 6F3&1B1 6B2 --  1B2 --  6I3 1I3 6W3 1W3
//   rank 2: .   5F0 2F0 5F1 2F1 5F2 2B0 --  2F2&5B0 5F3&2B1 2F3&5B1 2B2 --  5B2 --  2I3 5I3 2W3 5W3
//   rank 3: 4F0 4F1 4F2 3F0 3I0 3W0 3F1 4F3&3B1 .   3F2&4B0 3B2 --  3F3&4B1 3B3 --  4I2 4W2 4I3 4W3
//
// Drawing: dualpipev, 2 ranks, 4 micro-batches; F = 1, B = 2, W = 1, F&B = 2
//
//   rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3&3B1 .   3F2&0B0 3B2 --  3F3&0B1 3B3 --  0I2 0W2 0I3 0W3
//   rank 1: .   1F0 2F0 1F1 2F1 1F2 2B0 --  2F2&1B0 1F3&2B1 2F3&1B1 2B2 --  1B2 --  2I3 1I3 2W3 1W3
//
// Shapes: DualPipe: P even, M even (it counts both directions), M >= 2P. DualPipeV: M >= 2P.
// Bubble of the rank that idles most (PP/2-1)(F&B+B-3W), PP stages of a chain, when F = I, W <= F and
// max(F, B) <= F&B <= F+B. Peak activations PP+1 on every rank. Parameters 2x.
#pragma once

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

[[nodiscard]] Schedule dualpipe(const Shape& shape);
[[nodiscard]] Schedule dualpipev(const Shape& shape);

}  // namespace dualpipe
