// Random numbers that are the same on every machine, for parameters and synthetic data. Private to the stages.
#pragma once

#include <cstdint>

#include "dualpipe/sim/simulate/splitmix.h"

namespace dualpipe::detail::model {

// SplitMix64. Each (seed, stream) has its own sequence.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : state_(simulate::splitmix(simulate::splitmix(seed) ^ stream)) {}

  std::uint64_t next() { return simulate::splitmix(state_ += simulate::splitmix_step); }

  // In [-bound, bound).
  double uniform(double bound) {
    constexpr double step = 1.0 / (std::uint64_t{1} << 52U);
    return bound * (static_cast<double>(next() >> 11U) * step - 1);
  }

 private:
  std::uint64_t state_;
};

}  // namespace dualpipe::detail::model
