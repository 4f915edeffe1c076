// What reports take from many samples of one figure. Private to reports and the executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace dualpipe::detail::report {

// The least of the values that so many percent of them do not exceed; of two in the middle the lower one. There must be
// a value; `percent`: from 1 to 100.
template <typename T>
[[nodiscard]] T percentile(std::vector<T> values, std::size_t percent) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>((values.size() * percent + 99) / 100 - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

template <typename T>
[[nodiscard]] T median(std::vector<T> values) {
  return percentile(std::move(values), 50);
}

}  // namespace dualpipe::detail::report
