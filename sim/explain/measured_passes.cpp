#include "dualpipe/sim/explain/measured_passes.h"

#include <algorithm>
#include <utility>

namespace dualpipe::detail::explain {

Figure median(Samples samples) {
  if (samples.empty()) return std::nullopt;
  std::ranges::sort(samples);
  const std::int64_t lower = samples[(samples.size() - 1) / 2];
  return lower + (samples[samples.size() / 2] - lower) / 2;
}

PassFigures medians(PassSamples samples) {
  return {median(std::move(samples.forward)),        median(std::move(samples.backward)),
          median(std::move(samples.input_gradient)), median(std::move(samples.weight_gradient)),
          median(std::move(samples.pair)),           median(std::move(samples.pair_back))};
}

namespace {

// What a part never ran by itself is the median of the other parts'.
void fill_in(std::vector<PassFigures>& parts, Figure PassFigures::*pass) {
  Samples measured;
  for (const PassFigures& part : parts) {
    if (part.*pass) measured.push_back(*(part.*pass));
  }
  const Figure other = median(std::move(measured));
  for (PassFigures& part : parts) {
    if (!(part.*pass)) part.*pass = other;
  }
}

// Where I and W are missing B is split, in the proportion of the parts that have them, or in two. Returns whether the
// latter.
bool split_backwards(std::vector<PassFigures>& parts) {
  const std::vector<PassFigures> measured = parts;
  bool in_two = false;
  for (PassFigures& part : parts) {
    if ((part.input_gradient && part.weight_gradient) || !part.backward) continue;
    const std::int64_t full = *part.backward;
    Samples splits;
    for (const PassFigures& other : measured) {
      const auto input = static_cast<double>(other.input_gradient.value_or(0));
      const auto weight = static_cast<double>(other.weight_gradient.value_or(0));
      if (input + weight == 0) continue;
      splits.push_back(static_cast<std::int64_t>(static_cast<double>(full) * input / (input + weight)));
    }
    in_two = in_two || (splits.empty() && full > 0);
    part.input_gradient = median(std::move(splits)).value_or(full / 2);
    part.weight_gradient = full - *part.input_gradient;
  }
  return in_two;
}

}  // namespace

bool complete(std::vector<PassFigures>& parts) {
  for (PassFigures& part : parts) {
    if (part.backward || !part.input_gradient || !part.weight_gradient) continue;
    part.backward = *part.input_gradient + *part.weight_gradient;
  }
  fill_in(parts, &PassFigures::forward);
  fill_in(parts, &PassFigures::backward);
  for (PassFigures& part : parts) {
    if (!part.forward && part.pair) part.forward = *part.pair / 3;
    if (!part.backward && part.pair_back) part.backward = *part.pair_back - *part.pair_back / 3;
  }
  return split_backwards(parts);
}

StageCosts durations_of(const PassFigures& times) {
  StageCosts costs;
  costs.forward = times.forward.value_or(0);
  costs.backward = times.backward.value_or(0);
  costs.input_gradient = times.input_gradient.value_or(0);
  costs.weight_gradient = times.weight_gradient.value_or(0);
  costs.overlapped = times.pair;
  return costs;
}

}  // namespace dualpipe::detail::explain
