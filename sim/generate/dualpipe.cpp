#include "dualpipe/sim/generate/dualpipe.h"

#include <fmt/core.h>

#include <algorithm>

#include "dualpipe/sim/generate/builder.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

namespace {

// One rank's part. `near` is its stage of the chain (or half) that enters on its own side, `far` the other; passes of a
// stage take its micro-batches in order, and weight gradients are run first in, first out.
class DualRank {
 public:
  DualRank(Builder& builder, int near, int far) : builder_(builder), near_{near}, far_{far} {}

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
  Builder& builder_;
  Stage near_, far_;
  std::vector<std::pair<int, std::int64_t>> pending_;  // I done, W to come from `done_` on
  std::size_t done_ = 0;
};

// The order of the rank that is `depth` steps from the end of its half; `half` ranks in a half, `micro_batches` of each
// chain. Each step is named by what it emits: n near, f far.
void dual_order(DualRank ops, std::int64_t half, std::int64_t depth, std::int64_t micro_batches) {
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
  // 6. fB nB; the second half of these 2(depth+1) backwards is split
  for (std::int64_t i = 0; i < 2 * (depth + 1); ++i) {
    auto& stage = i % 2 == 0 ? far : near;
    if (i < depth + 1) {
      ops.backward(stage);
    } else {
      ops.input_gradient(stage);
    }
  }
  // 7. W nI
  for (std::int64_t i = 0; i < outer; ++i) {
    ops.weight_gradient();
    ops.input_gradient(near);
  }
  // 8. W
  for (std::int64_t i = 0; i < depth + 1; ++i) ops.weight_gradient();
}

void check_dualpipe(const Shape& shape) {
  if (shape.ranks % 2 != 0) {
    throw ShapeError(
        fmt::format("dualpipe: the number of ranks must be even, and {} is not; nearest that work: {}{} ranks",
                    shape.ranks, shape.ranks > 1 ? fmt::format("{} or ", shape.ranks - 1) : "", shape.ranks + 1));
  }
  const std::int64_t least = 2 * std::int64_t{shape.ranks};
  if (shape.micro_batches < least) {
    throw ShapeError(fmt::format(
        "dualpipe: {} ranks need at least twice as many micro-batches, counted over both directions, and {} are fewer; "
        "nearest that works: {} micro-batches",
        shape.ranks, shape.micro_batches, least));
  }
  if (shape.micro_batches % 2 != 0) {
    throw ShapeError(
        fmt::format("dualpipe: the number of micro-batches must be even, half for each direction, and {} is not; "
                    "nearest that work: "
                    "{} or {} micro-batches",
                    shape.micro_batches, shape.micro_batches - 1, shape.micro_batches + 1));
  }
}

void check_dualpipev(const Shape& shape) {
  const std::int64_t least = 2 * std::int64_t{shape.ranks};
  if (shape.micro_batches < least) {
    throw ShapeError(fmt::format(
        "dualpipev: {} ranks need at least twice as many micro-batches, and {} are fewer; nearest that works: {} "
        "micro-batches",
        shape.ranks, shape.micro_batches, least));
  }
}

}  // namespace

Schedule dualpipe(const Shape& shape) {
  check_shape("dualpipe", shape);
  check_dualpipe(shape);
  const int ranks = shape.ranks;
  const std::int64_t per_chain = shape.micro_batches / 2;
  Builder builder("dualpipe", two_way(ranks), per_chain, 3);
  for (int rank = 0; rank < ranks; ++rank) {
    const int down = rank;                // its stage of the chain that enters at rank 0
    const int up = 2 * ranks - 1 - rank;  // and of the one that enters at rank P-1
    const bool first_half = rank < ranks / 2;
    dual_order(DualRank(builder, first_half ? down : up, first_half ? up : down), ranks / 2,
               std::min(rank, ranks - 1 - rank), per_chain);
    builder.end_rank();
  }
  return builder.take();
}

Schedule dualpipev(const Shape& shape) {
  check_shape("dualpipev", shape);
  check_dualpipev(shape);
  Builder builder("dualpipev", v_shape(shape.ranks), shape.micro_batches, 3);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    dual_order(DualRank(builder, rank, 2 * shape.ranks - 1 - rank), shape.ranks, rank, shape.micro_batches);
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace dualpipe
