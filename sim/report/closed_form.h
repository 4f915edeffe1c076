// The published formulas for the bubble, and when they hold. Each stands with its family (generate/family.h):
//
//   (P-1)(F+B-2W)   M >= P, W <= min(F, I)
//
// Besides, all of them hold only for equal stages and ranks, and free communication that does not queue (`latency`,
// `links`). P ranks, M micro-batches, PP stages of a chain; durations of one stage, B and I with what they recompute.
// The formula gives the idle time of the rank that idles most: makespan - busy, or for some span - busy.
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

// The formula, and its own conditions: "(P-1)(F+B-2W); B = I + W, M >= P, W <= min(F, I)". Empty where none is
// published.
[[nodiscard]] std::string closed_form_text(const Family& family);

}  // namespace dualpipe
