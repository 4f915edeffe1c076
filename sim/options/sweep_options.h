// What a sweep is to go through, as people say it.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/options/shape_options.h"
#include "dualpipe/sim/sweep/sweep.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct SweepOptions {
  std::vector<std::string> schedules;  // names of the catalog, and files; empty: all of the catalog
  std::vector<std::string> ranks, micro_batches;
  std::vector<std::vector<std::string>> parameters =
      std::vector<std::vector<std::string>>(dualpipe::parameters().size());
  std::vector<std::string> memory_limits, recompute, cuts;
  std::vector<std::string> sets;  // "latency=0,20us"
  CostOptions costs;
  std::string seeds;  // so many draws of the jitter and the straggler
  std::vector<std::string> stragglers;
  std::string gpus, global_batch;  // instead of micro-batches, of costs that were estimated
  std::string tokens;
  std::istream* standard_input = nullptr;  // as of ScheduleOptions

  // `given`: what `costs` says. What must be known of how files were read is added to `remarks`. Throws InputError, and
  // UsageError for what does nothing in any point.
  [[nodiscard]] SweepGrid grid(GivenCosts given, std::vector<std::string>& remarks) const;
};

// That of an array job of Slurm where the environment has one (SLURM_ARRAY_TASK_ID, _MIN, _MAX and _COUNT); else all.
// `value_of_variable`: std::getenv(), but for tests. Throws InputError that names the variable.
[[nodiscard]] SweepShard shard_of_environment(const char* (*value_of_variable)(const char* name));

}  // namespace dualpipe
