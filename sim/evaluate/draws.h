// Many runs of one schedule that differ by what is drawn in each: jitter, and which rank is slow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

// Of times by draw: the least that so many of them do not exceed.
struct Quantiles {
  Time low = 0;     // 5 %
  Time median = 0;  // 50 %
  Time high = 0;    // 95 %
  // Between which the median of all draws that there are lies, with 95 % confidence, whatever the times' distribution:
  // by the ranks that a binomial distribution says (W. J. Conover, Practical Nonparametric Statistics, 1999, section
  // 3.2).
  Time median_least = 0;
  Time median_most = 0;

  friend bool operator==(const Quantiles&, const Quantiles&) = default;

  // How far from the median that of all draws may be, as a share of it; 0 of a median of 0.
  [[nodiscard]] double median_error() const;
};
// There must be a time.
[[nodiscard]] Quantiles quantiles_of(std::vector<Time> times);

// The rank that is slow in the run with this seed. All schedules meet the same seed with the same straggler: so they
// differ by their order alone.
[[nodiscard]] std::size_t straggler_of(std::uint64_t seed, std::size_t ranks);

// In what share of the draws each candidate takes the shortest time; where several do, the first of them. `drawn`: of
// each candidate its times by draw, all of the same draws.
[[nodiscard]] std::vector<double> win_rates(std::span<const std::span<const Time>> drawn);

}  // namespace dualpipe
