#include "dualpipe/sim/generate/rounds.h"

#include <fmt/core.h>

namespace dualpipe::detail::generate {
namespace {

std::int64_t rounds_of(std::int64_t ranks, std::int64_t micro_batches) {
  return std::max<std::int64_t>(1, micro_batches / ranks);
}

bool rounds_are_even(std::int64_t ranks, std::int64_t micro_batches) {
  return micro_batches % rounds_of(ranks, micro_batches) == 0;
}

}  // namespace

std::int64_t round_size(const Shape& shape) {
  return shape.micro_batches / rounds_of(shape.ranks, shape.micro_batches);
}

std::string uneven_rounds(const Shape& shape) {
  if (rounds_are_even(shape.ranks, shape.micro_batches)) return {};
  auto fewer = shape.micro_batches;
  while (!rounds_are_even(shape.ranks, fewer)) --fewer;
  auto more = shape.micro_batches;
  while (!rounds_are_even(shape.ranks, more)) ++more;
  const std::int64_t rounds = rounds_of(shape.ranks, shape.micro_batches);
  return fmt::format(
      "{} micro-batches on {} ranks make {} rounds, and {} does not divide them evenly; nearest that work: {} or {} "
      "micro-batches",
      shape.micro_batches, shape.ranks, rounds, rounds, fewer, more);
}

}  // namespace dualpipe::detail::generate
