// The two handcrafted zero-bubble schedules (arXiv:2401.10241, sections 2.1 and 2.2), one order with k = 1 and k = 2.
// The backward is split: I, whose result the previous rank waits for, at once; W, for which nobody waits, later, where
// the rank would idle. Rank r warms up with k(P-1-r) forwards, and its W lag k r micro-batches behind its I.
//
// ZB-H1 (k = 1; DeepSeek calls it ZB1P) holds as many activations as 1F1B's first rank. ZB-H2 (k = 2) holds twice as
// many and has, when F = I = W, no bubble by span. PyTorch's InterleavedZeroBubble is ZB-H1 over V chunks per rank,
// which it takes in rounds of n micro-batches as interleaved 1F1B does: (V-1)n forwards more to warm up.
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
// Drawing: interleaved-zb, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 2, W = 1
//
//   rank 0: 0F0 0F1 2F0 2F1 .   2I0 2W0 0F2 2I1 2W1 0F3 0I0 0W0 2F2 0I1 0W1 2F3 2I2 2W2 2I3 2W3 0I2 0W2 0I3 0W3
//   rank 1: .   1F0 1F1 3F0 3I0 3F1 3I1 3W0 1F2 1I0 3W1 1F3 1I1 1W0 3F2 3I2 1W1 3F3 3I3 3W2 1I2 3W3 1I3 1W2 1W3
//
// Shapes: any; of interleaved-zb M divisible by the number of rounds, max(1, M / P rounded down), n = M / rounds.
// Bubble of ZB-H1: (P-1) max(F+I-W, F, I) of one stage, with chunks too; published as (P-1)(F+B-2W), which needs
// W <= min(F, I). Of ZB-H2, by span: (P-1)(F+I-2W). Peak memory P M_B and (2P-1) M_B; with chunks (V-1)n + P stages'.
#include <algorithm>

#include "dualpipe/sim/generate/rounds.h"
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// Rounds of `round` micro-batches; of one chunk they are of no account.
void handcrafted_order(const Shape& shape, std::int64_t k, std::int64_t round, ScheduleBuilder& builder) {
  const std::int64_t passes = shape.micro_batches * shape.chunks;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    Rounds forwards(shape, round);
    Rounds input_gradients(shape, round);
    Rounds weight_gradients(shape, round);
    const auto forward = [&] {
      const Rounds::Pass pass = forwards.next();
      builder.forward(pass.chunk * shape.ranks + rank, pass.micro_batch);
    };
    const auto backward_half = [&](Kind kind, Rounds& rounds) {
      const Rounds::Pass pass = rounds.next();
      builder.add(kind, (shape.chunks - 1 - pass.chunk) * shape.ranks + rank, pass.micro_batch);
    };

    const auto warm_up = std::min((shape.chunks - 1) * round + k * (shape.ranks - 1 - rank), passes);
    const auto lag = std::min(k * rank, passes);
    for (std::int64_t i = 0; i < warm_up; ++i) forward();
    for (std::int64_t i = 0; i < passes; ++i) {
      if (i + warm_up < passes) forward();
      backward_half(Kind::input_gradient, input_gradients);
      if (i >= lag) backward_half(Kind::weight_gradient, weight_gradients);
    }
    for (std::int64_t i = 0; i < lag; ++i) backward_half(Kind::weight_gradient, weight_gradients);
  }
}

void zb_h1_order(const Request& request, ScheduleBuilder& builder) {
  handcrafted_order(request.shape, 1, request.shape.micro_batches, builder);
}
void zb_h2_order(const Request& request, ScheduleBuilder& builder) {
  handcrafted_order(request.shape, 2, request.shape.micro_batches, builder);
}
void interleaved_zb_order(const Request& request, ScheduleBuilder& builder) {
  handcrafted_order(request.shape, 1, round_size(request.shape), builder);
}

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

Family interleaved_zb() {
  return {.name = "interleaved-zb",
          .title = "ZB1P over V chunks per rank (PyTorch's InterleavedZeroBubble)",
          .paper = "arXiv:2401.10241",
          .rule = "M divisible by max(1, floor(M/P)) rounds",
          .takes_chunks = true,
          .splits_backward = true,
          .placement = straight_placement,
          .misfit = uneven_rounds,
          .order = interleaved_zb_order,
          .bubble = zb_h1_bubble};
}

}  // namespace dualpipe::detail::generate
