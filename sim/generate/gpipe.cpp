#include "dualpipe/sim/generate/gpipe.h"

#include "dualpipe/sim/generate/builder.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

Schedule gpipe(const Shape& shape) {
  check_shape("gpipe", shape);
  Builder builder("gpipe", straight(shape.ranks, 1), shape.micro_batches, 2);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.forward(rank, i);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.backward(rank, i);
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace dualpipe
