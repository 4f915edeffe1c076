// ZBV (Zero Bubble Pipeline Parallelism, arXiv:2401.10241, section 6), in the order that its authors and PyTorch
// (ScheduleZBVZeroBubble) write down by hand. One chain that turns round at the last rank: rank r holds stages r
// ("first") and 2P-1-r ("second"). The backward is split, and W fill what would be idle.
//
// Drawing: zbv, 2 ranks, 4 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3 .
//   rank 1: .   1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3
//
// Shapes: any. Of fewer than 2P-1 micro-batches it is the order of 2P-1, without those that are not there.
// Bubble by span 2(P-1)(I-W), when W <= F <= I and M >= 2P-1: none at F = I = W. Peak memory P M_B on every rank, as
// that of 1F1B's first, M_B the activations of both stages.
#include <algorithm>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// One rank's part: each pass of a stage takes its micro-batches in order, and passes over those that the shape lacks.
class ZbvRank {
 public:
  ZbvRank(ScheduleBuilder& builder, const Shape& shape, int rank)
      : builder_(builder),
        micro_batches_(shape.micro_batches),
        full_(std::max(shape.micro_batches, 2 * std::int64_t{shape.ranks} - 1)),
        first_{rank},
        second_{2 * shape.ranks - 1 - rank} {}

  struct Stage {
    int stage;
    std::int64_t forwards = 0;
    std::int64_t input_gradients = 0;
    std::int64_t weight_gradients = 0;
  };
  [[nodiscard]] Stage& first() { return first_; }
  [[nodiscard]] Stage& second() { return second_; }
  // How many there are of each pass, if none were passed over.
  [[nodiscard]] std::int64_t full() const { return full_; }

  void forward(Stage& s) { add(Kind::forward, s, s.forwards); }
  void input_gradient(Stage& s) { add(Kind::input_gradient, s, s.input_gradients); }
  void weight_gradient(Stage& s) { add(Kind::weight_gradient, s, s.weight_gradients); }

 private:
  void add(Kind kind, const Stage& s, std::int64_t& done) {
    const std::int64_t micro_batch = done++;
    if (micro_batch < micro_batches_) builder_.add(kind, s.stage, micro_batch);
  }

  ScheduleBuilder& builder_;
  std::int64_t micro_batches_;
  std::int64_t full_;
  Stage first_, second_;
};

// Each step is named by what it emits: 1 of the first stage, 2 of the second.
void zbv_rank_order(ZbvRank ops, int ranks, int rank) {
  auto& first = ops.first();
  auto& second = ops.second();

  // 1. F1
  for (int i = 0; i < 2 * (ranks - rank) - 1; ++i) ops.forward(first);
  // 2. F2 F1
  for (int i = 0; i < rank; ++i) {
    ops.forward(second);
    ops.forward(first);
  }
  // 3. F2 I2 W2
  for (int i = 0; i < ranks - rank; ++i) {
    ops.forward(second);
    ops.input_gradient(second);
    ops.weight_gradient(second);
  }
  // 4. F1 I1 W1 F2 I2 W2, without F1 once all have run
  while (second.forwards < ops.full()) {
    if (first.forwards < ops.full()) ops.forward(first);
    ops.input_gradient(first);
    ops.weight_gradient(first);
    ops.forward(second);
    ops.input_gradient(second);
    ops.weight_gradient(second);
  }
  // 5. I1 I2
  for (int i = 0; i < rank; ++i) {
    ops.input_gradient(first);
    ops.input_gradient(second);
  }
  // 6. I1 W1
  for (int i = 0; i < ranks - rank; ++i) {
    ops.input_gradient(first);
    ops.weight_gradient(first);
  }
  // 7. W2, then W1
  while (second.weight_gradients < ops.full()) ops.weight_gradient(second);
  while (first.weight_gradients < ops.full()) ops.weight_gradient(first);
}

void zbv_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    zbv_rank_order(ZbvRank(builder, shape, rank), shape.ranks, rank);
  }
}

BubbleFormula zbv_bubble(const SymbolValues& s) {
  using enum Symbol;
  return {"2(P-1)(I-W)",
          2 * (s.p - 1),
          s.i - s.w,
          {splits_evenly(s),
           micro_batches_at_least(s, "M >= 2P-1", 2 * s.p - 1),
           {s.f <= s.i, "F <= I", {forward, input_gradient}},
           weight_gradient_at_most_forward(s)},
          true};
}

}  // namespace

Family zbv() {
  return {.name = "zbv",
          .title = "ZBV, by hand: a V of stages, W fills the bubbles, memory of 1F1B",
          .paper = "arXiv:2401.10241",
          .rule = "any shape",
          .splits_backward = true,
          .placement = v_placement,
          .order = zbv_order,
          .bubble = zbv_bubble};
}

}  // namespace dualpipe::detail::generate
