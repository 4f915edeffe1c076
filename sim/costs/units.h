// The units that costs, timelines and reports count in.
#pragma once

#include <cstdint>

namespace dualpipe {

using Time = std::int64_t;  // nanoseconds
using Bytes = std::int64_t;

inline constexpr Time time_max = Time{1'000'000'000} * 86'400;  // of one op or message: a day
inline constexpr Bytes bytes_max = Bytes{1} << 60U;

}  // namespace dualpipe
