#include "dualpipe/sim/generate/zero_bubble.h"

#include <algorithm>

#include "dualpipe/sim/generate/builder.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

namespace {

Schedule handcrafted(std::string_view name, const Shape& shape, std::int64_t k) {
  check_shape(name, shape);
  const std::int64_t micro_batches = shape.micro_batches;
  Builder builder(name, straight(shape.ranks, 1), micro_batches, 3);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    const auto warm_up = std::min(k * (shape.ranks - 1 - rank), micro_batches);
    const auto lag = std::min(k * rank, micro_batches);
    for (std::int64_t i = 0; i < warm_up; ++i) builder.forward(rank, i);
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      if (i + warm_up < micro_batches) builder.forward(rank, i + warm_up);
      builder.input_gradient(rank, i);
      if (i >= lag) builder.weight_gradient(rank, i - lag);
    }
    for (std::int64_t i = micro_batches - lag; i < micro_batches; ++i) builder.weight_gradient(rank, i);
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace

Schedule zb_h1(const Shape& shape) { return handcrafted("zb1p", shape, 1); }
Schedule zb_h2(const Shape& shape) { return handcrafted("zb-h2", shape, 2); }

}  // namespace dualpipe
