// What is to be compared in a table, as people say it.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/options/shape_options.h"
#include "dualpipe/sim/report/table.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct TableOptions {
  ShapeOptions shape;                             // of it only the parameters
  std::vector<std::string> ranks, micro_batches;  // several: a row for each
  CostOptions costs;
  std::vector<std::string> schedules;  // names of the catalog, and files
  std::vector<std::string> recompute, flops;
  std::string memory_limit, tokens, seeds, straggler;
  std::string equal, sort;
  std::istream* standard_input = nullptr;  // as of ScheduleOptions

  // `given`: what these costs are. What must be known of how files were read is added to `remarks`. Throws InputError,
  // and UsageError for what none of the schedules has a use for.
  [[nodiscard]] TableRequest request(GivenCosts given, std::vector<std::string>& remarks) const;
};

// The values of `equal` and of `sort`.
[[nodiscard]] std::vector<std::string> table_terms();
[[nodiscard]] std::vector<std::string> table_sorts();

}  // namespace dualpipe
