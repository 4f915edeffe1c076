// Long schedules from short ones: the steady state of a good order for few micro-batches, repeated. Private to
// sim/search.
#pragma once

#include <optional>

#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/search/problem.h"

namespace dualpipe::detail::search {

// `order`: of the problem with `few`'s micro-batches. A stretch of time in which every stage runs each of its passes
// the same number of times, one to four, is put in again as often as it takes; of all such the one by which the longer
// order is shortest. Nothing where there is none that fits, or the order has full backwards.
[[nodiscard]] std::optional<Order> repeated(const Order& order, const Problem& few, const Problem& many, bool by_span);

}  // namespace dualpipe::detail::search
