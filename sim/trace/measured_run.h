// A run that was read from a trace as what the library works on: a Program, and the Timeline of its ops.
#pragma once

#include <string>
#include <vector>

#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/run_reader.h"

namespace dualpipe {

struct MeasuredRun {
  Program program;
  Timeline timeline;            // of the ops: messages are not in it
  std::vector<RankPeak> peaks;  // by rank; activations are counted where the trace does not say them
};

// Which ranks hold which stages is told by the ops; how many chains they are by which of these make a schedule of them.
// `source` is the run's name in errors. Throws InputError where the ops are no whole step, and where no rank could have
// run them in this order.
[[nodiscard]] MeasuredRun measured_run(const TraceRun& run, const std::string& source);

}  // namespace dualpipe
