// What the passes of a stage took, or held, where they were measured: medians, and what is known by them of passes that
// never ran. For costs from traces (measured_costs.h) and from runs (exec/train/calibrate.h).
//
// A part is a stage, or the stages at one place of all chains, which hold the same layers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe::detail::explain {

using Samples = std::vector<std::int64_t>;  // nanoseconds or bytes
using Figure = std::optional<std::int64_t>;
// Of none: nothing. Of two in the middle their mean, since a stage has few samples, and a pipeline adds up what each is
// off by.
[[nodiscard]] Figure median(Samples samples);

// Of a part: of its ops that ran by themselves, and of the F&B pairs with its forward, or with its backward.
template <typename T>
struct ByPass {
  T forward{};
  T backward{};
  T input_gradient{};
  T weight_gradient{};
  T pair{};
  T pair_back{};

  // `kind`: a pass.
  [[nodiscard]] T& of(Kind kind) {
    switch (kind) {
      case Kind::backward:
        return backward;
      case Kind::input_gradient:
        return input_gradient;
      case Kind::weight_gradient:
        return weight_gradient;
      default:
        return forward;
    }
  }
};
using PassSamples = ByPass<Samples>;
using PassFigures = ByPass<Figure>;
[[nodiscard]] PassFigures medians(PassSamples samples);

// Durations of F, B, I and W of all parts, as far as anything is known of them. Of a pass that a part never ran by
// itself,
//   B     is I + W
//   F, B  are the median of the other parts'; where no part has them, a third and two thirds of a pair
//   I, W  are B, split as in the parts that have them, or in two
// Returns whether B was split in two, so that I and W are a guess.
bool complete(std::vector<PassFigures>& parts);

// As costs; 0 is what nothing is known of, and an F&B stays unset.
[[nodiscard]] StageCosts durations_of(const PassFigures& times);

}  // namespace dualpipe::detail::explain
