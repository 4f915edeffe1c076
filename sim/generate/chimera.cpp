// Chimera (Efficiently Training Large-Scale Neural Networks with Bidirectional Pipelines, arXiv:2107.06925, section 3).
// Every micro-batch goes one of two ways, down the ranks or up, over the same layers: so the two ends of the pipeline
// fill each other's bubbles. With f replicas there are f chains down and f up, which start P/f ranks apart (section
// 3.6); all 2f hold the same weights, whose gradients are summed.
//
// A unit is P micro-batches, P/(2f) of each chain. Its m-th micro-batch of a chain runs stage s of the chain forwards
// in slot 2m + s and backwards in slot 2m + 2P-1 - s; no two passes of a rank meet. Of more micro-batches chimera puts
// a unit every 2P slots, where the next one fills the bubble that the last one leaves (the paper's direct
// concatenation, section 3.5). chimera-shifted puts one every P slots: the forwards of a unit and the backwards of the
// unit before take turns, so that no bubble comes between, however F and B differ.
//
// Drawing: chimera, 4 ranks, 8 micro-batches; F = 1, B = 1
//
//   rank 0: 0F0 0F1 .   7F0 7B0 7F1 7B1 0B0 0F2 0B1 0F3 7F2 7B2 7F3 7B3 0B2 .   0B3
//   rank 1: .   1F0 6F0 1F1 6F1 6B0 1B0 6B1 1B1 1F2 6F2 1F3 6F3 6B2 1B2 6B3 1B3 .
//   rank 2: .   5F0 2F0 5F1 2F1 2B0 5B0 2B1 5B1 5F2 2F2 5F3 2F3 2B2 5B2 2B3 5B3 .
//   rank 3: 4F0 4F1 .   3F0 3B0 3F1 3B1 4B0 4F2 4B1 4F3 3F2 3B2 3F3 3B3 4B2 .   4B3
//
// Drawing: chimera, 4 ranks, 4 micro-batches, 2 replicas; F = 1, B = 2
//
//   rank 0: 0F0  13F0 6F0  11F0 11B0 --   6B0  --   13B0 --   0B0  --
//   rank 1: 12F0 1F0  10F0 7F0  7B0  --   10B0 --   1B0  --   12B0 --
//   rank 2: 4F0  9F0  2F0  15F0 15B0 --   2B0  --   9B0  --   4B0  --
//   rank 3: 8F0  5F0  14F0 3F0  3B0  --   14B0 --   5B0  --   8B0  --
//
// Drawing: chimera-shifted, 4 ranks, 8 micro-batches; F = 1, B = 1
//
//   rank 0: 0F0 0F1 .   7F0 7B0 0F2 7F1 7B1 0F3 0B0 7F2 7B2 0B1 7F3 7B3 0B2 .   0B3
//   rank 1: .   1F0 6F0 1F1 6F1 6B0 1F2 1B0 6F2 6B1 1F3 1B1 6F3 6B2 1B2 6B3 1B3 .
//   rank 2: .   5F0 2F0 5F1 2F1 2B0 5F2 5B0 2F2 2B1 5F3 5B1 2F3 2B2 5B2 2B3 5B3 .
//   rank 3: 4F0 4F1 .   3F0 3B0 4F2 3F1 3B1 4F3 4B0 3F2 3B2 4B1 3F3 3B3 4B2 .   4B3
//
// Shapes: P and M divisible by 2f. (The last unit may be a part of one.)
// Bubble, when P divides M: of chimera (P/f-2)(max(F, B) + (M/P-1)|B-F|), of chimera-shifted (P/f-2) max(F, B). Peak
// activations of chimera P - P/(2f) + 1 to P, of chimera-shifted P where M >= 2P. Parameters 2f x.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>

#include "dualpipe/sim/generate/shared.h"
#include "dualpipe/sim/generate/slots.h"

namespace dualpipe::detail::generate {
namespace {

int chimera_chains(const Shape& shape) { return 2 * shape.replicas; }

Placement chimera_placement(const Shape& shape) { return two_way(shape.ranks, shape.replicas); }

std::string multiples_around(std::int64_t value, std::int64_t of) {
  const std::int64_t fewer = value / of * of;
  return fmt::format("{}{}", fewer > 0 ? fmt::format("{} or ", fewer) : "", fewer + of);
}

std::string chimera_misfit(const Shape& shape) {
  const int chains = chimera_chains(shape);
  const auto misfit = [&](std::string_view what, std::int64_t value) -> std::string {
    if (value % chains == 0) return {};
    return fmt::format("the number of {} must be divisible by the {} chains, and {} is not; nearest that work: {} {}",
                       what, chains, value, multiples_around(value, chains), what);
  };
  const std::string ranks = misfit("ranks", shape.ranks);
  return ranks.empty() ? misfit("micro-batches", shape.micro_batches) : ranks;
}

// Units begin `period` slots apart.
void chimera_grid(const Shape& shape, std::int64_t period, ScheduleBuilder& builder) {
  const StagesByRank stages(builder.placement());
  const int chains = chimera_chains(shape);
  const std::int64_t ranks = shape.ranks;
  const Units units{shape.micro_batches / chains, ranks / chains, period};
  Slots slots;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    slots.reset(units.last_begin() + 3 * ranks);
    for (const int stage : stages.on(rank)) {
      const std::int64_t position = stage % ranks;
      slots.add_stage(stage, position, 2 * ranks - 1 - position, units);
    }
    builder.go_to(rank);
    slots.add_to(builder);
  }
}

void chimera_order(const Request& request, ScheduleBuilder& builder) {
  chimera_grid(request.shape, 2 * std::int64_t{request.shape.ranks}, builder);
}

void chimera_shifted_order(const Request& request, ScheduleBuilder& builder) {
  chimera_grid(request.shape, request.shape.ranks, builder);
}

BubbleFormula chimera_bubble(const SymbolValues& s) {
  return {"(P/f-2)(max(F,B)+(M/P-1)|B-F|)",
          2 * s.p / s.chains - 2,
          std::max(s.f, s.b) + (s.m / s.p - 1) * std::abs(s.b - s.f),
          {ranks_divide_micro_batches(s)}};
}

BubbleFormula chimera_shifted_bubble(const SymbolValues& s) {
  return {"(P/f-2)max(F,B)", 2 * s.p / s.chains - 2, std::max(s.f, s.b), {ranks_divide_micro_batches(s)}};
}

}  // namespace

Family chimera() {
  return {.name = "chimera",
          .title = "Chimera: two directions, units of P micro-batches one after the other",
          .paper = "arXiv:2107.06925",
          .rule = "P and M divisible by 2f",
          .takes_replicas = true,
          .placement = chimera_placement,
          .misfit = chimera_misfit,
          .order = chimera_order,
          .bubble = chimera_bubble};
}

Family chimera_shifted() {
  return {.name = "chimera-shifted",
          .title = "Chimera, units half as far apart: no bubble between them",
          .paper = "arXiv:2107.06925",
          .rule = "P and M divisible by 2f",
          .takes_replicas = true,
          .placement = chimera_placement,
          .misfit = chimera_misfit,
          .order = chimera_shifted_order,
          .bubble = chimera_shifted_bubble};
}

}  // namespace dualpipe::detail::generate
