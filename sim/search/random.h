// A sequence of random numbers that is the same on every machine. Private to sim/search.
#pragma once

#include <cmath>
#include <cstdint>

#include "dualpipe/sim/simulate/splitmix.h"

namespace dualpipe::detail::search {

class Random {
 public:
  // Sequences of one seed and different streams have nothing in common.
  Random(std::uint64_t seed, std::uint64_t stream)
      : state_(simulate::splitmix(seed * simulate::splitmix_step + stream)) {}

  [[nodiscard]] std::uint64_t next() { return simulate::splitmix(state_ += simulate::splitmix_step); }
  // From 0 to count - 1, of at most 2^32.
  [[nodiscard]] std::uint64_t below(std::uint64_t count) { return ((next() >> 32U) * count) >> 32U; }
  // From 0 up to 1.
  [[nodiscard]] double share() { return static_cast<double>(next() >> 11U) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

}  // namespace dualpipe::detail::search
