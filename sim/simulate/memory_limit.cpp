#include "dualpipe/sim/simulate/memory_limit.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {
namespace {

__extension__ using Int128 = __int128;

const MemoryLimit& largest(const std::vector<MemoryLimit>& needed) {
  return *std::ranges::max_element(needed, {}, &MemoryLimit::amount);
}

std::string text_of_excess(std::string_view schedule, const MemoryLimit& limit,
                           const std::vector<MemoryLimit>& needed) {
  const auto rank = std::ranges::find(needed, largest(needed)) - needed.begin();
  return fmt::format("{}: rank {} needs {}, more than the memory limit of {}; the least limit that works is {}",
                     schedule, rank, to_text(largest(needed)), to_text(limit), to_text(largest(needed)));
}

// a * b / c, rounded up; at most what 64 bits hold.
std::int64_t scaled(std::int64_t a, std::int64_t b, std::int64_t c) {
  const Int128 value = (Int128{a} * b + c - 1) / c;
  return static_cast<std::int64_t>(std::min<Int128>(value, std::numeric_limits<std::int64_t>::max()));
}

}  // namespace

MemoryLimitError::MemoryLimitError(std::string_view schedule, const MemoryLimit& limit,
                                   const std::vector<MemoryLimit>& needed)
    : InputError(text_of_excess(schedule, limit, needed)), least_(largest(needed)) {}

Costs activation_shares(const Costs& costs, const Placement& placement) {
  check(costs, placement);
  Costs shares;
  shares.stages.resize(placement.rank_of.size());
  const StagesByRank by_rank(placement);
  for (int rank = 0; rank < placement.ranks; ++rank) {
    Bytes most = 0;
    for (const int stage : by_rank.on(rank)) most = std::max(most, costs.of(stage).held_activation());
    most = std::max<Bytes>(most, 1);
    for (const int stage : by_rank.on(rank)) {
      const StageCosts& cost = costs.of(stage);
      StageCosts& share = shares.stages[static_cast<std::size_t>(stage)];
      share.activation = most;
      const Bytes held = cost.held_activation();
      share.weight_stash = held == 0 ? most : scaled(cost.weight_stash, most, held);
    }
  }
  return shares;
}

std::vector<MemoryLimit> memory_needed(const Program& program, const Costs& costs, MemoryLimit::Unit unit) {
  std::vector<MemoryLimit> needed;
  if (unit == MemoryLimit::Unit::bytes) {
    for (const RankMemory& rank : memory_of_ranks(program, costs)) needed.emplace_back(rank.peak);
    return needed;
  }
  const Placement& placement = program.schedule.placement;
  const Costs shares = activation_shares(costs, placement);
  const StagesByRank by_rank(placement);
  const auto memory = memory_of_ranks(program, shares);
  for (int rank = 0; rank < placement.ranks; ++rank) {
    const auto stages = by_rank.on(rank);
    Bytes micro_batch = 0;
    for (const int stage : stages) micro_batch += shares.of(stage).activation;
    const Bytes peak = memory[static_cast<std::size_t>(rank)].peak;
    needed.emplace_back(scaled(peak, MemoryLimit::per_micro_batch, std::max<Bytes>(micro_batch, 1)), unit);
  }
  return needed;
}

void check_memory_limit(const Program& program, const Costs& costs, const MemoryLimit& limit) {
  const auto needed = memory_needed(program, costs, limit.unit);
  if (largest(needed).amount > limit.amount) throw MemoryLimitError(program.schedule.name, limit, needed);
}

}  // namespace dualpipe
