// The cell that begins with an op: the op alone, or an F&B pair. Private to sim.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::explain {

class Cells {
 public:
  explicit Cells(const Program& program) {
    const auto& ops = program.schedule.ops;
    for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
      if (ops[i].with_next) second_.emplace(key_of(ops[i]), ops[i + 1]);
    }
  }

  // Of an F&B pair, by its first op.
  [[nodiscard]] std::optional<Op> second(Op first) const {
    if (!first.with_next) return std::nullopt;
    const auto found = second_.find(key_of(first));
    return found == second_.end() ? std::nullopt : std::optional(found->second);
  }
  [[nodiscard]] std::string text(Op first) const {
    const auto other = second(first);
    const Op cell[] = {first, other.value_or(first)};
    return cell_text(std::span(cell, other ? 2 : 1));
  }

 private:
  std::unordered_map<std::uint64_t, Op> second_;  // never iterated
};

}  // namespace dualpipe::detail::explain
