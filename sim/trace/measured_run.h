// A run that was read from a trace as what the library works on: a Program, and the Timeline of its ops.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/explain/measured_messages.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/run_reader.h"

namespace dualpipe {

struct MeasuredRun {
  Program program;
  Timeline timeline;            // of the ops; of messages where add_messages() found them
  std::vector<RankPeak> peaks;  // by rank; activations are counted where the trace does not say them
};

// `program`: what ran, where that is known; its ops are those of the run. Else which ranks hold which stages is told by
// the ops, and how many chains they are by which of these make a schedule of them in which no op starts before its
// input is made. `source` is the run's name in errors. Throws InputError where the ops are no whole step, and where no
// rank could have run them in this order.
[[nodiscard]] MeasuredRun measured_run(const TraceRun& run, const std::string& source,
                                       std::optional<Program> program = std::nullopt);

// What ran, where it is known otherwise whether a run on a placement agrees with its times. None where measured_run()
// throws.
[[nodiscard]] std::optional<Program> program_of(const TraceRun& run,
                                                const std::function<bool(const Placement&)>& agrees_with_times);
// What ran, where the placement is known. Throws what measured_run() does.
[[nodiscard]] Program program_on(const TraceRun& run, const Placement& placement, const std::string& source);

// Sets the times of the run's messages, where each message of its program was recorded: on each link the k-th is the
// k-th that the program sends there. Returns whether that is so; else nothing is set.
bool add_messages(MeasuredRun& run, std::span<const MeasuredMessage> messages);

}  // namespace dualpipe
