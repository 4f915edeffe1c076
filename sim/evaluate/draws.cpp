#include "dualpipe/sim/evaluate/draws.h"

#include <algorithm>
#include <cmath>

#include "dualpipe/sim/simulate/splitmix.h"

namespace dualpipe {

double Quantiles::median_error() const {
  if (median <= 0) return 0;
  return static_cast<double>(std::max(median_most - median, median - median_least)) / static_cast<double>(median);
}

Quantiles quantiles_of(std::vector<Time> times) {
  std::ranges::sort(times);
  const auto count = static_cast<double>(times.size());
  const double half_width = 0.98 * std::sqrt(count);  // 1.96 standard deviations of the number below the median
  const auto place = [&](double rank) { return times[static_cast<std::size_t>(std::clamp(rank, 1.0, count)) - 1]; };
  // Nearest rank, in whole numbers: the least that percent / 100 of them do not exceed.
  const auto at = [&](std::size_t percent) { return times[(times.size() * percent + 99) / 100 - 1]; };
  return {at(5), at(50), at(95), place(std::floor(count / 2 - half_width)),
          place(std::ceil(count / 2 + half_width) + 1)};
}

std::size_t straggler_of(std::uint64_t seed, std::size_t ranks) {
  constexpr std::uint64_t other_than_jitter = 0x5374726167676c65U;
  return detail::simulate::splitmix(seed * detail::simulate::splitmix_step ^ other_than_jitter) % ranks;
}

std::vector<double> win_rates(std::span<const std::span<const Time>> drawn) {
  std::vector<std::size_t> wins(drawn.size());
  const std::size_t draws = drawn.empty() ? 0 : drawn.front().size();
  for (std::size_t draw = 0; draw < draws; ++draw) {
    const auto winner = std::ranges::min_element(drawn, {}, [&](std::span<const Time> times) { return times[draw]; });
    ++wins[static_cast<std::size_t>(winner - drawn.begin())];
  }
  std::vector<double> rates;
  for (const std::size_t each : wins) rates.push_back(static_cast<double>(each) / static_cast<double>(draws));
  return rates;
}

}  // namespace dualpipe
