// What is to be searched for, as people say it.
#pragma once

#include <string>
#include <vector>

#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/search/search.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct SearchOptions {
  std::string ranks, micro_batches, memory_limit, budget, seed, threads, time_limit;
  std::string placement = "any";
  std::string objective = "makespan";
  CostOptions costs;

  // Throws InputError, and UsageError for costs that do nothing here.
  [[nodiscard]] SearchRequest request() const;
  // In seconds; 0: none.
  [[nodiscard]] double seconds() const;
};

// The values of `placement` and of `objective`.
[[nodiscard]] std::vector<std::string> search_placements();
[[nodiscard]] std::vector<std::string> search_objectives();

}  // namespace dualpipe
