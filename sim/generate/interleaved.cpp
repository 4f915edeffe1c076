// Interleaved 1F1B (Megatron-LM, arXiv:2104.04473, section 2.2; PyTorch's ScheduleInterleaved1F1B). A rank holds V
// stages ("chunks"), P apart. Micro-batches go in rounds of n: a round passes chunk 0, then chunk 1, …, and backwards
// the chunks in reverse. Rank r warms up with (V-1)n + 2(P-1-r) forwards, then runs a forward and a backward in turn.
//
// Drawing: interleaved, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 1
//
//   rank 0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
//   rank 1: .   1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 .
//
// Shapes: M divisible by the number of rounds, max(1, M / P rounded down); n = M / rounds. (Megatron-LM takes only
// n = P.)
// Bubble (P-1)(F+B) of one stage where n = P: V times less, relative to a rank's work, than 1F1B's.
// Peak activations, in stages: warm-up + 1.
#include <fmt/core.h>

#include <algorithm>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

std::int64_t rounds_of(std::int64_t ranks, std::int64_t micro_batches) {
  return std::max<std::int64_t>(1, micro_batches / ranks);
}

bool rounds_are_even(std::int64_t ranks, std::int64_t micro_batches) {
  return micro_batches % rounds_of(ranks, micro_batches) == 0;
}

std::string interleaved_misfit(const Shape& shape) {
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

void interleaved_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  const std::int64_t round = shape.micro_batches / rounds_of(shape.ranks, shape.micro_batches);
  const std::int64_t forwards = shape.micro_batches * shape.chunks;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
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
  }
}

}  // namespace

Family interleaved() {
  return {.name = "interleaved",
          .title = "1F1B over V chunks per rank (Megatron-LM)",
          .paper = "arXiv:2104.04473",
          .rule = "M divisible by max(1, floor(M/P)) rounds",
          .takes_chunks = true,
          .placement = straight_placement,
          .misfit = interleaved_misfit,
          .order = interleaved_order,
          .bubble = looped_bubble};
}

}  // namespace dualpipe::detail::generate
