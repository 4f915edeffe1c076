// Interleaved 1F1B (Megatron-LM, arXiv:2104.04473, section 2.2; PyTorch's ScheduleInterleaved1F1B). A rank holds V
// stages ("chunks"), P apart. Micro-batches go in rounds of n: a round passes chunk 0, then chunk 1, …, and backwards
// the chunks in reverse. Rank r warms up with (V-1)n + 2(P-1-r) forwards, then runs a forward and a backward in turn.
//
// With overlap (Megatron-LM's combined 1F1B, --overlap-moe-expert-parallel-comm) a rank warms up with one forward more,
// and from then on runs the forward and the backward as one F&B pair. With one chunk that is 1F1B with overlap.
//
// Drawing: interleaved, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 1
//
//   rank 0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
//   rank 1: .   1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 .
//
// Drawing: interleaved-overlap, 2 ranks, 4 micro-batches, 2 chunks; F = 1, B = 2, F&B = 2
//
//   rank 0: 0F0 0F1 2F0 2F1 0F2 .   0F3&2B0 2F2&2B1 2F3&0B0 0B1 --  2B2 --  2B3 --  0B2 --  0B3 --
//   rank 1: .   1F0 1F1 3F0 3F1&3B0 1F2&3B1 1F3&1B0 3F2&1B1 3F3&3B2 3B3 --  1B2 --  1B3 --  .   .
//
// Shapes: by default PyTorch's, M divisible by the number of rounds, max(1, M / P rounded down); n = M / rounds. With a
// group size N Megatron-LM's (microbatch_group_size_per_vp_stage): n = N, P <= N <= M, and the last round, which has
// what is left, has at least P, too. With fewer many of these orders hang.
// Bubble (P-1)(F+B) of one stage: V times less, relative to a rank's work, than 1F1B's; also with overlap, whatever F&B
// is from max(F, B) to F+B. Peak activations, in stages: warm-up + 1.
#include <fmt/core.h>

#include <algorithm>

#include "dualpipe/sim/generate/rounds.h"
#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

bool group_fits(const Shape& shape, std::int64_t group) {
  const std::int64_t rest = shape.micro_batches % group;
  return rest == 0 || rest >= shape.ranks;
}

// The groups beside the shape's that fit, as text: "2 or 4".
std::string nearest_groups(const Shape& shape, std::int64_t least) {
  std::int64_t smaller = shape.group;
  while (smaller >= least && !group_fits(shape, smaller)) --smaller;
  std::int64_t larger = shape.group;
  while (!group_fits(shape, larger)) ++larger;  // all micro-batches in one group do
  return smaller < least ? fmt::format("{}", larger) : fmt::format("{} or {}", smaller, larger);
}

std::string interleaved_misfit(const Shape& shape) {
  if (shape.group == 0) return uneven_rounds(shape);
  const std::int64_t most = shape.micro_batches;
  const std::int64_t least = std::min<std::int64_t>(shape.ranks, most);
  if (shape.group < least || shape.group > most) {
    return fmt::format(
        "the size of a group must be between {} and {}, the number of ranks and that of micro-batches, and is {}; with "
        "less, ranks would wait for each other",
        least, most, shape.group);
  }
  if (group_fits(shape, shape.group)) return {};
  return fmt::format(
      "{} micro-batches in groups of {} leave {} for the last one, and the {} ranks need as many as they are; nearest "
      "that work: groups of {}",
      shape.micro_batches, shape.group, shape.micro_batches % shape.group, shape.ranks, nearest_groups(shape, least));
}

enum class Steady : std::uint8_t { in_turn, overlapped };

// One rank: its forwards, of which the first `warm_up` come alone, and its backwards.
void rank_order(const Shape& shape, std::int64_t round, int rank, Steady steady, ScheduleBuilder& builder) {
  Rounds forwards(shape, round);
  Rounds backwards(shape, round);
  const auto stage_of = [&](int chunk) { return chunk * shape.ranks + rank; };
  const auto stage_from_last = [&](int chunk) { return stage_of(shape.chunks - 1 - chunk); };
  const auto forward = [&] {
    const Rounds::Pass pass = forwards.next();
    builder.forward(stage_of(pass.chunk), pass.micro_batch);
  };
  const auto backward = [&] {
    const Rounds::Pass pass = backwards.next();
    builder.backward(stage_from_last(pass.chunk), pass.micro_batch);
  };

  const std::int64_t passes = shape.micro_batches * shape.chunks;
  const std::int64_t alone = (shape.chunks - 1) * round + 2 * (shape.ranks - 1 - rank);
  const std::int64_t warm_up = std::min(alone + (steady == Steady::overlapped ? 1 : 0), passes);
  for (std::int64_t i = 0; i < warm_up; ++i) forward();
  for (std::int64_t i = warm_up; i < passes; ++i) {
    if (steady == Steady::overlapped) {
      const Rounds::Pass f = forwards.next();
      const Rounds::Pass b = backwards.next();
      builder.overlapped(stage_of(f.chunk), f.micro_batch, stage_from_last(b.chunk), b.micro_batch);
    } else {
      forward();
      backward();
    }
  }
  for (std::int64_t i = 0; i < warm_up; ++i) backward();
}

template <Steady steady>
void interleaved_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  const std::int64_t round = shape.group == 0 ? round_size(shape) : shape.group;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    rank_order(shape, round, rank, steady, builder);
  }
}

BubbleFormula overlapped_bubble(const SymbolValues& s) {
  BubbleFormula formula = looped_bubble(s);
  formula.conditions.push_back(pairs_no_slower(s));
  formula.conditions.push_back(pairs_no_faster(s));
  return formula;
}

}  // namespace

Family interleaved() {
  return {.name = "interleaved",
          .title = "1F1B over V chunks per rank (Megatron-LM)",
          .paper = "arXiv:2104.04473",
          .rule = "M divisible by max(1, floor(M/P)) rounds; or groups of N: P <= N <= M, M mod N = 0 or >= P",
          .takes_chunks = true,
          .takes_group = true,
          .placement = straight_placement,
          .misfit = interleaved_misfit,
          .order = interleaved_order<Steady::in_turn>,
          .bubble = looped_bubble};
}

Family interleaved_overlap() {
  return {.name = "interleaved-overlap",
          .title = "interleaved, F and B of two chunks overlapped (Megatron-LM)",
          .paper = "github.com/NVIDIA/Megatron-LM (combined_1f1b)",
          .rule = "as interleaved",
          .takes_chunks = true,
          .takes_group = true,
          .has_pairs = true,
          .placement = straight_placement,
          .misfit = interleaved_misfit,
          .order = interleaved_order<Steady::overlapped>,
          .bubble = overlapped_bubble};
}

}  // namespace dualpipe::detail::generate
