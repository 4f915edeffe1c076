// A Timeline as a Chrome trace (JSON), made for Perfetto (https://ui.perfetto.dev); chrome://tracing reads it too.
//
//   dualpipe                        one process, named after the schedule, with lanes in the order of ranks
//     rank 00 compute               F 0 | F 1 | F&B' 2 0 | B' 1 | W' 2 …
//     rank 00 compute, stage 0      attention 0F3 | experts 0F3 …: a measured run's parts of ops, where these have any,
//     rank 00 exchange              on a lane for each stage; dispatch 0F3 | combine 0F3 …: those that exchange, at the
//     rank 00 copy                  same time; and copies of what came in
//     rank 00 send to rank 01       a lane per directed link; a second one, "rank 00 send to rank 01 (2)", where
//     rank 00 receive from rank 01  transfers overlap
//     rank 00 reduce                gradient reductions
//     rank 01 compute               …
//     rank 00 activations live      counters: forwards whose B or I has not ended,
//     rank 00 memory bytes          and bytes, if the costs have any
//
// With an explanation there are a lane "critical path" above all others, with arrows along it from op to op; a lane
// "rank 00 idle" below each rank's compute lane, with a slice for each cause; and the slack of each op in its
// arguments.
//
// Of several runs in one file ("rank 00 planned compute") each rank has its lanes of all runs, in the order in which
// the runs were given; counters are numbered ("rank 00 #1 planned memory bytes"). F' is a forward of the second chain,
// F'' of the third.
//
// Each op's arguments hold its text (`3B7`), stage, chain, micro-batch and the idle time before it; a message's also
// its bytes; a compute lane's the rank and what it needed at most, and of a measured run what it ran on. All but the
// latter, and the parts, read_chrome_trace() reads back. An arrow leads from each send to its receive. A message that
// takes no time has no slices; its arrow leads from the op that made it to the op that needs it.
#pragma once

#include <iosfwd>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/trace_writer.h"

namespace dualpipe {

// What to write of runs that are too large for a browser. Slices that reach into the window are written whole, arrows
// only if both ends are written.
struct TraceFilter {
  int first_rank = 0;
  int last_rank = std::numeric_limits<int>::max();
  Time begin = std::numeric_limits<Time>::min();
  Time end = std::numeric_limits<Time>::max();

  [[nodiscard]] bool has(int rank) const { return first_rank <= rank && rank <= last_rank; }
  [[nodiscard]] bool has(Span span) const { return span.start < end && (span.end > begin || span.start >= begin); }
};

// One of the runs of a file. All that it refers to outlives the writing; the timeline must have recorded spans.
struct TracedRun {
  const Program& program;
  const Costs& costs;
  const Timeline& timeline;
  std::string_view label = {};                // "planned", "measured"; a run that is alone needs none
  std::span<const RankPeak> peaks = {};       // by rank, as they were measured; empty: those that the costs make
  std::span<const std::string> devices = {};  // by rank: "rank 03 compute on NVIDIA H100"; a plan has none
  TraceArgs about = {};                       // what else is to be known of it
  const Explanation* explanation = nullptr;   // of it
  bool has_messages = true;                   // false: nobody knows when they went; the timeline has spans of ops alone
};

// Writes a file. At least one run; all have the same number of ranks. Throws InputError for a run that lacks spans.
void write_chrome_trace(std::ostream& out, std::span<const TracedRun> runs, const TraceFilter& filter = {});
// Of one run.
void write_chrome_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                        const TraceFilter& filter = {});

}  // namespace dualpipe
