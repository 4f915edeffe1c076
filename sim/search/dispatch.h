// Orders that are made in one go through time: whenever a rank is free it runs what comes first of the ops whose inputs
// are there. Private to sim/search.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/search/problem.h"

namespace dualpipe::detail::search {

struct DispatchRule {
  // By 3 * stage + pass: what is less runs first; `step` more for each micro-batch.
  std::vector<Time> key;
  Time step = 0;
  // A W, or an op of a later key, runs only if by this share of its duration no F or I with an earlier key arrives.
  double patience = 0;
  // By rank: how many micro-batches may be in flight through its first stage of a chain. Empty: as many as memory
  // takes.
  std::vector<std::int64_t> in_flight;
};

// Nothing where ranks wait for each other for ever.
[[nodiscard]] std::optional<Order> dispatch(const Problem& problem, const Ops& ops, const DispatchRule& rule);

}  // namespace dualpipe::detail::search
