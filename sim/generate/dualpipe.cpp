// DualPipe (DeepSeek-V3, arXiv:2412.19437, section 3.2.1) and DualPipeV, the "cut in half" schedule that halves its
// ranks (https://github.com/deepseek-ai/DualPipe). One order over two placements:
//
//   DualPipe   two chains over the same layers, entering at rank 0 and at rank P-1; every rank holds a stage of each.
//   DualPipeV  one chain that turns round at the last rank: rank r holds stages r and 2P-1-r. It is the first P ranks
//              of DualPipe(2P, 2M), with "the far chain" read as "the second half of the chain".
//
// MindSpeed runs DualPipeV with full backwards in the cool-down: activations go sooner where they are recomputed, and
// the bubble is longer. That is dualpipev-plain.
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
// Drawing: dualpipev-plain, 2 ranks, 4 micro-batches; F = 1, B = 2, W = 1, F&B = 2
//
//   rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3&3B1 .   3F2&0B0 3B2 --  3F3&0B1 3B3 --  0B2 --  .   .   0B3 --
//   rank 1: .   1F0 2F0 1F1 2F1 1F2 2B0 --  2F2&1B0 1F3&2B1 2F3&1B1 2B2 --  1B2 --  2B3 --  1B3 --  .   .
//
// Shapes: DualPipe: P even, M even (it counts both directions), M >= 2P. DualPipeV: M >= 2P.
// Bubble of the rank that idles most (PP/2-1)(F&B+B-3W), PP stages of a chain, when F = I, W <= F and
// max(F, B) <= F&B <= F+B. Of dualpipev-plain (PP/2-1)(F&B+B-W) when F = I. (MindSpeed documents F less. No rank of a
// simulated run idles that little, and one rank alone cannot idle less than not at all.) Peak activations PP+1 on every
// rank. Parameters 2x.
#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// One rank's part. `near` is its stage of the chain (or half) that enters on its own side, `far` the other; passes of a
// stage take its micro-batches in order, and weight gradients are run first in, first out.
class DualRank {
 public:
  DualRank(ScheduleBuilder& builder, int near, int far) : builder_(builder), near_{near}, far_{far} {}

  struct Stage {
    int stage;
    std::int64_t forwards = 0;
    std::int64_t backwards = 0;
  };
  [[nodiscard]] Stage& near() { return near_; }
  [[nodiscard]] Stage& far() { return far_; }

  void forward(Stage& s) { builder_.forward(s.stage, s.forwards++); }
  void backward(Stage& s) { builder_.backward(s.stage, s.backwards++); }
  void overlapped(Stage& f, Stage& b) { builder_.overlapped(f.stage, f.forwards++, b.stage, b.backwards++); }
  void input_gradient(Stage& s) {
    pending_.push_back({s.stage, s.backwards});
    builder_.input_gradient(s.stage, s.backwards++);
  }
  void weight_gradient() {
    const auto [stage, micro_batch] = pending_[done_++];
    builder_.weight_gradient(stage, micro_batch);
  }

 private:
  ScheduleBuilder& builder_;
  Stage near_, far_;
  std::vector<std::pair<int, std::int64_t>> pending_;  // I done, W to come from `done_` on
  std::size_t done_ = 0;
};

// The backwards of the cool-down.
enum class CoolDown : std::uint8_t { split, full };

// Steps 6 to 8 of a rank.
void cool_down(DualRank& ops, std::int64_t outer, std::int64_t depth, CoolDown backwards) {
  auto& near = ops.near();
  const bool is_full = backwards == CoolDown::full;
  // 6. fB nB; the second half of these 2(depth+1) backwards is split
  for (std::int64_t i = 0; i < 2 * (depth + 1); ++i) {
    auto& stage = i % 2 == 0 ? ops.far() : near;
    if (i < depth + 1 || is_full) {
      ops.backward(stage);
    } else {
      ops.input_gradient(stage);
    }
  }
  // 7. W nI
  for (std::int64_t i = 0; i < outer; ++i) {
    if (is_full) {
      ops.backward(near);
    } else {
      ops.weight_gradient();
      ops.input_gradient(near);
    }
  }
  // 8. W
  for (std::int64_t i = 0; i < depth + 1 && !is_full; ++i) ops.weight_gradient();
}

// The order of the rank that is `depth` steps from the end of its half; `half` ranks in a half, `micro_batches` of each
// chain. Each step is named by what it emits: n near, f far.
void dual_order(DualRank ops, std::int64_t half, std::int64_t depth, std::int64_t micro_batches, CoolDown backwards) {
  auto& near = ops.near();
  auto& far = ops.far();
  const std::int64_t outer = half - 1 - depth;  // ranks between this one and the middle
  const bool middle = outer == 0;

  // 1. nF
  for (std::int64_t i = 0; i < 2 * outer; ++i) ops.forward(near);
  // 2. nF fF
  for (std::int64_t i = 0; i < depth + 1; ++i) {
    ops.forward(near);
    ops.forward(far);
  }
  // 3. fI W fF
  for (std::int64_t i = 0; i < outer; ++i) {
    ops.input_gradient(far);
    ops.weight_gradient();
    ops.forward(far);
  }
  // 4. (nF fB) (fF nB). The middle rank does not overlap its first pair: it hands over its forward sooner.
  for (std::int64_t i = 0; i < micro_batches - 2 * half + depth + 1; ++i) {
    if (middle && i == 0) {
      ops.forward(near);
      ops.backward(far);
    } else {
      ops.overlapped(near, far);
    }
    ops.overlapped(far, near);
  }
  // 5. fB (fF nB)
  for (std::int64_t i = 0; i < outer; ++i) {
    ops.backward(far);
    ops.overlapped(far, near);
  }
  cool_down(ops, outer, depth, backwards);
}

std::string dualpipe_misfit(const Shape& shape) {
  if (shape.ranks % 2 != 0) {
    return fmt::format("the number of ranks must be even, and {} is not; nearest that work: {}{} ranks", shape.ranks,
                       shape.ranks > 1 ? fmt::format("{} or ", shape.ranks - 1) : "", shape.ranks + 1);
  }
  const std::int64_t least = 2 * std::int64_t{shape.ranks};
  if (shape.micro_batches < least) {
    return fmt::format(
        "{} ranks need at least twice as many micro-batches, counted over both directions, and {} are fewer; nearest "
        "that works: {} micro-batches",
        shape.ranks, shape.micro_batches, least);
  }
  if (shape.micro_batches % 2 != 0) {
    return fmt::format(
        "the number of micro-batches must be even, half for each direction, and {} is not; nearest that work: {} or "
        "{} micro-batches",
        shape.micro_batches, shape.micro_batches - 1, shape.micro_batches + 1);
  }
  return {};
}

std::string dualpipev_misfit(const Shape& shape) {
  const std::int64_t least = 2 * std::int64_t{shape.ranks};
  if (shape.micro_batches >= least) return {};
  return fmt::format(
      "{} ranks need at least twice as many micro-batches, and {} are fewer; nearest that works: {} micro-batches",
      shape.ranks, shape.micro_batches, least);
}

void dualpipe_order(const Request& request, ScheduleBuilder& builder) {
  const int ranks = request.shape.ranks;
  for (int rank = 0; rank < ranks; ++rank) {
    builder.go_to(rank);
    const int down = rank;                // its stage of the chain that enters at rank 0
    const int up = 2 * ranks - 1 - rank;  // and of the one that enters at rank P-1
    const bool first_half = rank < ranks / 2;
    dual_order(DualRank(builder, first_half ? down : up, first_half ? up : down), ranks / 2,
               std::min(rank, ranks - 1 - rank), request.shape.micro_batches / 2, CoolDown::split);
  }
}

template <CoolDown backwards>
void dualpipev_order(const Request& request, ScheduleBuilder& builder) {
  const int ranks = request.shape.ranks;
  for (int rank = 0; rank < ranks; ++rank) {
    builder.go_to(rank);
    dual_order(DualRank(builder, rank, 2 * ranks - 1 - rank), ranks, rank, request.shape.micro_batches, backwards);
  }
}

BubbleFormula dual_bubble(const SymbolValues& s) {
  using enum Symbol;
  return {"(PP/2-1)(F&B+B-3W)",
          s.pp / 2 - 1,
          s.overlapped + s.b - 3 * s.w,
          {splits_evenly(s),
           {s.f == s.i, "F = I", {forward, input_gradient}},
           weight_gradient_at_most_forward(s),
           pairs_no_slower(s),
           pairs_no_faster(s)}};
}

BubbleFormula plain_bubble(const SymbolValues& s) {
  return {"(PP/2-1)(F&B+B-W)",
          s.pp / 2 - 1,
          s.overlapped + s.b - s.w,
          {splits_evenly(s),
           {s.f == s.i, "F = I", {Symbol::forward, Symbol::input_gradient}},
           pairs_no_slower(s),
           pairs_no_faster(s)}};
}

}  // namespace

Family dualpipe() {
  return {.name = "dualpipe",
          .title = "DualPipe: two directions, F and B overlapped",
          .paper = "arXiv:2412.19437",
          .rule = "P even, M even, M >= 2P",
          .splits_backward = true,
          .has_pairs = true,
          .is_in_first_table = true,
          .placement = [](const Shape& shape) { return two_way(shape.ranks); },
          .misfit = dualpipe_misfit,
          .order = dualpipe_order,
          .bubble = dual_bubble};
}

Family dualpipev() {
  return {.name = "dualpipev",
          .title = "DualPipeV: DualPipe folded onto half the ranks",
          .paper = "github.com/deepseek-ai/DualPipe",
          .rule = "M >= 2P",
          .splits_backward = true,
          .has_pairs = true,
          .is_in_first_table = true,
          .placement = v_placement,
          .misfit = dualpipev_misfit,
          .order = dualpipev_order<CoolDown::split>,
          .bubble = dual_bubble};
}

Family dualpipev_plain() {
  return {.name = "dualpipev-plain",
          .title = "DualPipeV with full backwards in the cool-down (MindSpeed)",
          .paper = "gitee.com/ascend/MindSpeed (dualpipev)",
          .rule = "M >= 2P",
          .splits_backward = true,
          .has_pairs = true,
          .placement = v_placement,
          .misfit = dualpipev_misfit,
          .order = dualpipev_order<CoolDown::full>,
          .bubble = plain_bubble};
}

}  // namespace dualpipe::detail::generate
