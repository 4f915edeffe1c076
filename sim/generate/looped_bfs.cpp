#include "dualpipe/sim/generate/looped_bfs.h"

#include "dualpipe/sim/generate/builder.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

Schedule looped_bfs(const Shape& shape) {
  check_shape("looped-bfs", shape);
  Builder builder("looped-bfs", straight(shape.ranks, shape.chunks), shape.micro_batches, 2);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      for (std::int64_t i = 0; i < shape.micro_batches; ++i) builder.forward(chunk * shape.ranks + rank, i);
    }
    for (int chunk = shape.chunks - 1; chunk >= 0; --chunk) {
      for (std::int64_t i = shape.micro_batches - 1; i >= 0; --i) builder.backward(chunk * shape.ranks + rank, i);
    }
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace dualpipe
