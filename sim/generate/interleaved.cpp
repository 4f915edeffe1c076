#include "dualpipe/sim/generate/interleaved.h"

#include <fmt/core.h>

#include <algorithm>

#include "dualpipe/sim/generate/builder.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::generate::Builder;
using detail::generate::check_shape;

namespace {

std::int64_t rounds_of(std::int64_t ranks, std::int64_t micro_batches) {
  return std::max<std::int64_t>(1, micro_batches / ranks);
}

bool fits(std::int64_t ranks, std::int64_t micro_batches) {
  return micro_batches % rounds_of(ranks, micro_batches) == 0;
}

void check_rounds(const Shape& shape) {
  if (fits(shape.ranks, shape.micro_batches)) return;
  auto fewer = shape.micro_batches;
  while (!fits(shape.ranks, fewer)) --fewer;
  auto more = shape.micro_batches;
  while (!fits(shape.ranks, more)) ++more;
  throw ShapeError(
      fmt::format("interleaved: {} micro-batches on {} ranks make {} rounds, and {} does not divide them evenly; "
                  "nearest that work: "
                  "{} or {} micro-batches",
                  shape.micro_batches, shape.ranks, rounds_of(shape.ranks, shape.micro_batches),
                  rounds_of(shape.ranks, shape.micro_batches), fewer, more));
}

}  // namespace

Schedule interleaved(const Shape& shape) {
  check_shape("interleaved", shape);
  check_rounds(shape);
  const std::int64_t round = shape.micro_batches / rounds_of(shape.ranks, shape.micro_batches);
  const std::int64_t forwards = shape.micro_batches * shape.chunks;

  Builder builder("interleaved", straight(shape.ranks, shape.chunks), shape.micro_batches, 2);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    // The k-th pass of a rank: which chunk, and which micro-batch, as it comes round.
    const auto chunk = [&](std::int64_t k) { return static_cast<int>(k / round % shape.chunks); };
    const auto micro_batch = [&](std::int64_t k) { return k / (round * shape.chunks) * round + k % round; };
    const auto forward = [&](std::int64_t k) { builder.forward(chunk(k) * shape.ranks + rank, micro_batch(k)); };
    const auto backward = [&](std::int64_t k) {
      builder.backward((shape.chunks - 1 - chunk(k)) * shape.ranks + rank, micro_batch(k));
    };

    const auto warm_up = std::min((shape.chunks - 1) * round + 2 * (shape.ranks - 1 - rank), forwards);
    for (std::int64_t k = 0; k < warm_up; ++k) forward(k);
    for (std::int64_t k = warm_up; k < forwards; ++k) {
      forward(k);
      backward(k - warm_up);
    }
    for (std::int64_t k = forwards - warm_up; k < forwards; ++k) backward(k);
    builder.end_rank();
  }
  return builder.take();
}

}  // namespace dualpipe
