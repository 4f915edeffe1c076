// Reads our Chrome traces back: what ran on each rank, in which order, when, and what it needed. Messages, counters and
// arrows, and the processes and events that other tools may have added, are stepped over; what event_reader.h says of
// the format holds.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct TraceRank {
  std::vector<Op> ops;      // F, B, I and W
  std::vector<Span> spans;  // of the ops, in whole nanoseconds as they were written; both of a pair have the pair's
  RankPeak peak;

  friend bool operator==(const TraceRank&, const TraceRank&) = default;
};

struct TraceRun {
  std::string label;  // "planned", "measured"; empty in a trace of one run
  std::vector<TraceRank> ranks;

  friend bool operator==(const TraceRun&, const TraceRun&) = default;
};

// The runs of a trace, in its order; at least one. Throws InputError, naming file and place, for what is not JSON, for
// a trace of another tool, and for one without all ranks (written with a TraceFilter).
[[nodiscard]] std::vector<TraceRun> read_chrome_trace(std::istream& in, const std::string& source);
// The same of a file; throws InputError, too, where it cannot be opened.
[[nodiscard]] std::vector<TraceRun> load_chrome_trace(const std::string& path);

}  // namespace dualpipe
