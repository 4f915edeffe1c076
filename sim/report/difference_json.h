// A Difference as a part of larger JSON documents. Private: users of the library need no nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>

#include "dualpipe/sim/report/difference.h"

namespace dualpipe::detail::report {

// Times in nanoseconds, `…_ns`.
[[nodiscard]] nlohmann::ordered_json to_json(const Difference& difference);

}  // namespace dualpipe::detail::report
