// What op a range of a profiler is around, by its name. Private to sim/trace.
#pragma once

#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/trace/foreign.h"

namespace dualpipe::detail::trace {

class RangeNames {
 public:
  // Throws InputError for a pattern that is none, or whose groups are too few.
  RangeNames(int ranks, const ForeignOptions& options);

  // The op, or the two of a pair; empty: it is none. `rank`: on which it runs, which says the stage where names do not.
  [[nodiscard]] std::vector<Op> ops_of(std::string_view name, int rank) const;
  // Of a name that says the pass alone, F, B (or I) or W: then the order says which op it is. Such are Megatron-LM's
  // functions, forward_step and backward_step, where a profiler records stacks, and what a pattern of one group
  // matches.
  [[nodiscard]] std::optional<Kind> pass_of(std::string_view name) const;

 private:
  [[nodiscard]] bool has_micro_batch_group() const { return pattern_ && pattern_->mark_count() >= 2; }
  [[nodiscard]] std::vector<Op> by_pattern(std::string_view name, int rank) const;
  [[nodiscard]] std::vector<Op> by_pytorch(std::string_view name, int rank) const;
  [[nodiscard]] std::vector<Op> by_letters(std::string_view name, int rank) const;
  [[nodiscard]] std::optional<int> stage_of(int rank, int chunk) const;

  int ranks_;
  const ForeignOptions& options_;
  std::optional<std::regex> pattern_;
};

}  // namespace dualpipe::detail::trace
