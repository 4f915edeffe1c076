#include "dualpipe/sim/generate/one_f_one_b.h"

#include <algorithm>

#include "dualpipe/sim/generate/builder.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

Schedule one_f_one_b(const Shape& shape) {
  check_shape("1f1b", shape);
  Builder builder("1f1b", straight(shape.ranks, 1), shape.micro_batches, 2);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    const auto warm_up = std::min<std::int64_t>(shape.ranks - 1 - rank, shape.micro_batches);
    for (std::int64_t i = 0; i < warm_up; ++i) builder.forward(rank, i);
    for (std::int64_t i = warm_up; i < shape.micro_batches; ++i) {
      builder.forward(rank, i);
      builder.backward(rank, i - warm_up);
    }
    for (std::int64_t i = shape.micro_batches - warm_up; i < shape.micro_batches; ++i) builder.backward(rank, i);
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace dualpipe
