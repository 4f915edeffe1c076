// What several families share of their placements and formulas. Private to sim.
#pragma once

#include <algorithm>

#include "dualpipe/sim/generate/family.h"

namespace dualpipe::detail::generate {

// One chain that passes all ranks, once for every chunk.
[[nodiscard]] inline Placement straight_placement(const Shape& shape) { return straight(shape.ranks, shape.chunks); }
// One chain that turns round at the last rank.
[[nodiscard]] inline Placement v_placement(const Shape& shape) { return v_shape(shape.ranks); }

[[nodiscard]] inline BubbleCondition splits_evenly(const SymbolValues& s) {
  return {s.b == s.i + s.w, "B = I + W", {Symbol::backward, Symbol::input_gradient, Symbol::weight_gradient}};
}

[[nodiscard]] inline BubbleCondition micro_batches_at_least(const SymbolValues& s, std::string_view text,
                                                            std::int64_t least) {
  return {s.m >= least, text, {Symbol::micro_batches, Symbol::ranks}};
}

[[nodiscard]] inline BubbleCondition ranks_divide_micro_batches(const SymbolValues& s) {
  return {s.m % s.p == 0, "M divisible by P", {Symbol::micro_batches, Symbol::ranks}};
}

[[nodiscard]] inline BubbleCondition weight_gradient_at_most_forward(const SymbolValues& s) {
  return {s.w <= s.f, "W <= F", {Symbol::forward, Symbol::weight_gradient}};
}

// What an overlapped pair can take: no more than its passes one after the other, no less than the longer of them.
[[nodiscard]] inline BubbleCondition pairs_no_slower(const SymbolValues& s) {
  return {s.overlapped <= s.f + s.b, "F&B <= F+B", {Symbol::overlapped, Symbol::forward, Symbol::backward}};
}
[[nodiscard]] inline BubbleCondition pairs_no_faster(const SymbolValues& s) {
  return {
      s.overlapped >= std::max(s.f, s.b), "F&B >= max(F, B)", {Symbol::overlapped, Symbol::forward, Symbol::backward}};
}

// The pipeline fills and drains once.
[[nodiscard]] inline BubbleFormula flush_bubble(const SymbolValues& s) { return {"(P-1)(F+B)", s.p - 1, s.f + s.b}; }

// The same with several stages on a rank, of one of which F and B are: only then has a rank enough to do meanwhile.
[[nodiscard]] inline BubbleFormula looped_bubble(const SymbolValues& s) {
  BubbleFormula formula = flush_bubble(s);
  formula.conditions = {micro_batches_at_least(s, "M >= P", s.p)};
  return formula;
}

}  // namespace dualpipe::detail::generate
