// Hanayo (Harnessing Wave-like Pipeline Parallelism for Enhanced Large Model Training Efficiency, arXiv:2308.15762).
// One chain that goes down the ranks and up again, W times ("waves"): Chimera's short way between the two ends of the
// pipeline, with every layer held once.
//
// The paper draws its schedules, and does not say how they go on where M > P. Here Chimera's grid is laid over the
// wave: micro-batches go in rounds of P; the m-th of a round runs stage s of S = 2 P W forwards in slot 2m + s and
// backwards in slot 2m + 2S-1 - s, and rounds begin S slots apart. So in every slot a rank has at most one forward, of
// one round, and one backward, of the round before; and never more than P micro-batches' activations, as at M = P.
//
// Drawing: hanayo, 2 ranks, 4 micro-batches, 1 waves; F = 1, B = 1
//
//   rank 0: 0F0 0F1 .   3F0 3B0 0F2 3F1 3B1 0F3 0B0 3F2 3B2 0B1 3F3 3B3 0B2 .   0B3
//   rank 1: .   1F0 2F0 1F1 2F1 2B0 1F2 1B0 2F2 2B1 1F3 1B1 2F3 2B2 1B2 2B3 1B3 .
//
// Drawing: hanayo, 2 ranks, 2 micro-batches, 2 waves; F = 1, B = 1
//
//   rank 0: 0F0 0F1 .   3F0 4F0 3F1 4F1 7F0 7B0 7F1 7B1 4B0 3B0 4B1 3B1 0B0 .   0B1
//   rank 1: .   1F0 2F0 1F1 2F1 5F0 6F0 5F1 6F1 6B0 5B0 6B1 5B1 2B0 1B0 2B1 1B1 .
//
// Shapes: any.
// Bubble 2(P-1) max(F, B) of one stage, when P divides M. At M = P and B = 2F that is the share (2P-2)/(3PW+2P-2) of
// the time; the paper has (2P-2)/(3PW+P-1), which is more. Peak activations, in stages: 2 W P.
#include <algorithm>

#include "dualpipe/sim/generate/shared.h"
#include "dualpipe/sim/generate/slots.h"

namespace dualpipe::detail::generate {
namespace {

void hanayo_order(const Request& request, ScheduleBuilder& builder) {
  const Shape& shape = request.shape;
  const StagesByRank stages(builder.placement());
  const std::int64_t length = builder.placement().stages();
  const Units rounds{shape.micro_batches, shape.ranks, length};
  Slots slots;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    slots.reset(rounds.last_begin() + 2 * length + 2 * std::int64_t{shape.ranks});
    for (const int stage : stages.on(rank)) slots.add_stage(stage, stage, 2 * length - 1 - stage, rounds);
    builder.go_to(rank);
    slots.add_to(builder);
  }
}

BubbleFormula hanayo_bubble(const SymbolValues& s) {
  return {"2(P-1)max(F,B)", 2 * (s.p - 1), std::max(s.f, s.b), {ranks_divide_micro_batches(s)}};
}

}  // namespace

Family hanayo() {
  return {.name = "hanayo",
          .title = "Hanayo: a chain in W waves down the ranks and up",
          .paper = "arXiv:2308.15762",
          .rule = "any shape",
          .takes_waves = true,
          .placement = [](const Shape& shape) { return wave(shape.ranks, shape.waves); },
          .order = hanayo_order,
          .bubble = hanayo_bubble};
}

}  // namespace dualpipe::detail::generate
