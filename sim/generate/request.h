// What is asked for when a schedule is to be generated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/costs/model_costs.h"

namespace dualpipe {

struct Shape {
  int ranks = 1;                   // P
  std::int64_t micro_batches = 1;  // M, the total over chains, as DeepSeek counts it

  // Each of these is free in some families only (family.h); in the others it stays as it is here.
  int chunks = 1;    // V, stages per rank
  int group = 0;     // N, micro-batches that a rank runs through one chunk before the next one; 0: the family's choice
  int waves = 1;     // W, how often a micro-batch goes down all ranks and up again
  int replicas = 1;  // f, how many pairs of chains, one down and one up, hold all layers

  friend bool operator==(const Shape&, const Shape&) = default;
};

// The order of an automatic schedule depends on all of it, that of a handcrafted one on the shape alone.
struct Request {
  std::string family = {};  // its name in the catalog
  Shape shape = {};
  GivenCosts costs = {};                         // what the schedule is to be good for; no stages: not known
  std::optional<MemoryLimit> memory_limit = {};  // of the peak of every rank; none: as the family says

  friend bool operator==(const Request&, const Request&) = default;
};

}  // namespace dualpipe
