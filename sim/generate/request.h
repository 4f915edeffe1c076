// What is asked for when a schedule is to be generated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dualpipe/sim/costs/model_costs.h"

namespace dualpipe {

struct Shape {
  int ranks = 1;                   // P
  std::int64_t micro_batches = 1;  // M, the total over chains, as DeepSeek counts it
  int chunks = 1;                  // V, stages per rank, of the families whose rank holds a free number of them

  friend bool operator==(const Shape&, const Shape&) = default;
};

// The order of an automatic schedule depends on all of it, that of a handcrafted one on the shape alone.
struct Request {
  std::string family = {};  // its name in the catalog
  Shape shape = {};
  GivenCosts costs = {};                   // what the schedule is to be good for; no stages: not known
  std::optional<Bytes> memory_limit = {};  // of the peak of every rank; none: there is enough

  friend bool operator==(const Request&, const Request&) = default;
};

}  // namespace dualpipe
