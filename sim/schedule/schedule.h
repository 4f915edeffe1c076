// What runs on which rank, and in which order: no times, no communication. See program.h for what lower() makes of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

struct Schedule {
  std::string name;  // the catalog's, or the file's
  Placement placement;
  std::uint32_t micro_batches = 0;      // of each chain
  std::vector<Op> ops;                  // F, B, I, W; rank after rank
  std::vector<std::size_t> rank_begin;  // of ops: ranks + 1 entries

  friend bool operator==(const Schedule&, const Schedule&) = default;

  [[nodiscard]] int ranks() const { return placement.ranks; }
  [[nodiscard]] std::span<const Op> rank(int rank) const {
    const auto begin = rank_begin[static_cast<std::size_t>(rank)];
    return std::span(ops).subspan(begin, rank_begin[static_cast<std::size_t>(rank) + 1] - begin);
  }
  // Over all chains, as DeepSeek counts.
  [[nodiscard]] std::uint64_t total_micro_batches() const {
    return std::uint64_t{micro_batches} * static_cast<std::uint64_t>(placement.chains());
  }
};

// F&B.
[[nodiscard]] inline bool has_pairs(const Schedule& schedule) {
  return std::ranges::any_of(schedule.ops, &Op::with_next);
}

// How many ops run as one unit at ops[0]: 2 for an F&B pair, else 1.
[[nodiscard]] inline std::size_t unit_size(std::span<const Op> ops) {
  return ops[0].with_next && ops.size() > 1 ? 2 : 1;
}

}  // namespace dualpipe
