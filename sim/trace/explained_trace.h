// What an explanation adds to a trace: the critical path, and idle time by its cause. Private to sim/trace.
#pragma once

#include <span>
#include <string>

#include "dualpipe/sim/explain/cells.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/trace/run_context.h"

namespace dualpipe::detail::trace {

class ExplainedTrace {
 public:
  // The run has an explanation.
  explicit ExplainedTrace(const RunContext& run);

  // Before the lanes of all ranks: the path from the start of the run to its end, a slice for each step.
  void write_path() const;
  // The next lane of a rank, where it is ever idle.
  void write_idle(int rank) const;
  // By how much an op could start later, and whether it is on the path.
  void add_slack(TraceArgs& args, int rank, const report::Unit& unit) const;
  // After all slices: from each op of the path to the next one. `compute`: the lane of each rank's ops.
  void write_arrows(std::span<const TraceTrack> compute) const;

 private:
  [[nodiscard]] const Explanation& explanation() const { return *run_.run.explanation; }
  [[nodiscard]] std::string step_name(const PathStep& step) const;

  const RunContext& run_;
  explain::Cells cells_;
};

}  // namespace dualpipe::detail::trace
