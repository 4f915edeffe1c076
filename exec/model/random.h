// Random numbers that are the same on every machine, for parameters and synthetic data. Private to the stages.
#pragma once

#include <cstdint>

namespace dualpipe::detail::model {

// SplitMix64 (Steele, Lea, Flood 2014). Each (seed, stream) has its own sequence.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : state_(mix(mix(seed) ^ stream)) {}

  std::uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15U); }

  // In [-bound, bound).
  double uniform(double bound) {
    constexpr double step = 1.0 / (std::uint64_t{1} << 52U);
    return bound * (static_cast<double>(next() >> 11U) * step - 1);
  }

 private:
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27U)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31U);
  }

  std::uint64_t state_;
};

}  // namespace dualpipe::detail::model
