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
#include <algorithm>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

void handcrafted_order(const Shape& shape, std::int64_t k, ScheduleBuilder& builder) {
  const std::int64_t micro_batches = shape.micro_batches;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    const auto warm_up = std::min(k * (shape.ranks - 1 - rank), micro_batches);
    const auto lag = std::min(k * rank, micro_batches);
    for (std::int64_t i = 0; i < warm_up; ++i) builder.forward(rank, i);
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      if (i + warm_up < micro_batches) builder.forward(rank, i + warm_up);
      builder.input_gradient(rank, i);
      if (i >= lag) builder.weight_gradient(rank, i - lag);
    }
    for (std::int64_t i = micro_batches - lag; i < micro_batches; ++i) builder.weight_gradient(rank, i);
  }
}

void zb_h1_order(const Request& request, ScheduleBuilder& builder) { handcrafted_order(request.shape, 1, builder); }
void zb_h2_order(const Request& request, ScheduleBuilder& builder) { handcrafted_order(request.shape, 2, builder); }

BubbleFormula zb_h1_bubble(const SymbolValues& s) {
  using enum Symbol;
  return {"(P-1)(F+B-2W)",
          s.p - 1,
          s.f + s.b - 2 * s.w,
          {splits_evenly(s),
           micro_batches_at_least(s, "M >= P", s.p),
           {s.w <= std::min(s.f, s.i), "W <= min(F, I)", {forward, input_gradient, weight_gradient}}}};
}

BubbleFormula zb_h2_bubble(const SymbolValues& s) {
  using enum Symbol;
  return {"(P-1)(F+B-3W)",
          s.p - 1,
          s.f + s.b - 3 * s.w,
          {splits_evenly(s),
           micro_batches_at_least(s, "M >= 2P-1", 2 * s.p - 1),
           weight_gradient_at_most_forward(s),
           {2 * s.w <= s.f + s.i, "2W <= F+I", {forward, input_gradient, weight_gradient}}},
          true};
}

}  // namespace

Family zb_h1() {
  return {.name = "zb1p",
          .title = "ZB1P, the handcrafted ZB-H1: W fills the bubbles, memory of 1F1B",
          .paper = "arXiv:2401.10241",
          .rule = "any shape",
          .splits_backward = true,
          .is_in_first_table = true,
          .placement = straight_placement,
          .order = zb_h1_order,
          .bubble = zb_h1_bubble};
}

Family zb_h2() {
  return {.name = "zb-h2",
          .title = "ZB-H2: no bubble by span at F=I=W, twice the memory",
          .paper = "arXiv:2401.10241",
          .rule = "any shape",
          .splits_backward = true,
          .placement = straight_placement,
          .order = zb_h2_order,
          .bubble = zb_h2_bubble};
}

}  // namespace dualpipe::detail::generate
