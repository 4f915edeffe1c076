// The cut of a model's parts into stages by which a schedule is shortest.
//
// The cut that gives the most loaded rank the least (stage_costs()) is where it begins. Few micro-batches, memory and
// messages make others better: so runs of neighbouring cuts are moved by one or two parts, as long as the simulated
// makespan gets less.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

struct CutFigures {
  std::vector<int> cut;  // how many parts each stage of a chain gets
  Time makespan = 0;
  Time load = 0;          // F + B of a micro-batch of the rank that has most
  Bytes peak_memory = 0;  // of the rank that needs most
  bool fits = true;
};

struct Partition {
  CutFigures best;
  CutFigures balanced;  // the least load of the most loaded rank
  int simulations = 0;
};

// `program_of`: the schedule for costs with a cut, valid, always on the same placement; it is called on several
// threads. Without a cut in the costs it begins with the balanced one, else with the given one. Throws InputError:
// fewer parts than stages, and what stage_costs() throws; MemoryLimitError where no cut that was tried keeps the limit.
[[nodiscard]] Partition partition(const std::function<Program(const ModelCosts&)>& program_of, const ModelCosts& costs,
                                  const std::optional<MemoryLimit>& limit = std::nullopt, unsigned threads = 0);

}  // namespace dualpipe
