// Whether the ranks of a program keep a memory limit.
#pragma once

#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// What a rank holds is more than the limit. Names the rank, and the least limit that works.
class MemoryLimitError : public InputError {
 public:
  // `needed` by rank, in the unit of the limit; at least one is more than it.
  MemoryLimitError(std::string_view schedule, const MemoryLimit& limit, const std::vector<MemoryLimit>& needed);

  [[nodiscard]] const MemoryLimit& least() const { return least_; }

 private:
  MemoryLimit least_;
};

// By rank: the least limit, in this unit, that it keeps. Throws InputError as rank_memory() does.
[[nodiscard]] std::vector<MemoryLimit> memory_needed(const Program& program, const Costs& costs,
                                                     MemoryLimit::Unit unit);

// Throws MemoryLimitError, and what memory_needed() throws.
void check_memory_limit(const Program& program, const Costs& costs, const MemoryLimit& limit);

// The costs that a limit in micro-batches counts with: all stages of a rank have an activation of the same bytes, what
// is left of it for W in proportion, and nothing else is held.
[[nodiscard]] Costs activation_shares(const Costs& costs, const Placement& placement);

}  // namespace dualpipe
