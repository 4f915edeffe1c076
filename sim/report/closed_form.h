// The published formulas for the bubble, and when they hold.
//
//   family            bubble                   holds for
//   gpipe, 1f1b       (P-1)(F+B)               any durations
//   interleaved       (P-1)(F+B)               M >= P
//   looped-bfs        (P-1)(F+B)               M >= P
//   zb1p              (P-1)(F+B-2W)            M >= P, W <= min(F, I)                    DeepSeek's README
//   zb-h2, by span    (P-1)(F+B-3W)            M >= 2P-1, W <= F, 2W <= F+I              arXiv:2401.10241
//   dualpipe(v)       (PP/2-1)(F&B+B-3W)       F = I, W <= F, max(F,B) <= F&B <= F+B     DeepSeek's README
//
// and all of them only for B = I + W, equal stages and ranks, and free communication that does not queue (`latency`,
// `links`). P ranks, M micro-batches, PP stages of a chain; durations of one stage, B and I with what they recompute.
// The formula gives the idle time of the rank that idles most: makespan - busy, or for zb-h2 span - busy.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

struct ClosedForm {
  std::string formula;
  Time bubble = 0;       // its value for these costs; negative where it makes no sense
  bool by_span = false;  // else by makespan
  std::string broken;    // the first condition that does not hold, with its numbers; empty: the formula is exact

  [[nodiscard]] bool holds() const { return broken.empty(); }
};

// Nothing where none is published. For costs with different stages the value is that of stage 0's durations, and the
// form does not hold. Throws InputError for a name that the catalog lacks, for costs that check() refuses, and for a
// value of more than 292 years.
[[nodiscard]] std::optional<ClosedForm> closed_form(std::string_view family, const Shape& shape, const Costs& costs);

}  // namespace dualpipe
