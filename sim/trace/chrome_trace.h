// A Timeline as a Chrome trace (JSON), made for Perfetto (https://ui.perfetto.dev); chrome://tracing reads it too.
//
//   rank 00                   one process per rank
//     compute                 F 0 | F 1 | F&B 2 0 | B 1 | W 2 …
//     compute, stage 0        attention 0F3 | experts 0F3 …: a measured run's parts of ops, where these have any, on a
//     exchange                lane for each stage; dispatch 0F3 | combine 0F3 …: those that exchange, at the same time;
//     copy                    and copies of what came in
//     send to rank 01         a lane per directed link; a second one, "send to rank 01 (2)", where transfers overlap
//     receive from rank 01
//     reduce                  gradient reductions
//     activations live        counters: forwards whose B or I has not ended,
//     memory bytes            and bytes, if the costs have any
//
// Each op's arguments hold its text (`3B7`), stage, chain, micro-batch and the idle time before it; a message's also
// its bytes; a process's the rank and what it needed at most, and of a measured run what it ran on. All but the latter,
// and the parts, read_chrome_trace() reads back. An arrow leads from each send to its receive. A message that takes no
// time has no slices; its arrow leads from the op that made it to the op that needs it.
#pragma once

#include <iosfwd>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/trace_writer.h"

namespace dualpipe {

// What to write of a run that is too large for a browser. Slices that reach into the window are written whole, arrows
// only if both ends are written.
struct TraceFilter {
  int first_rank = 0;
  int last_rank = std::numeric_limits<int>::max();
  Time begin = std::numeric_limits<Time>::min();
  Time end = std::numeric_limits<Time>::max();

  [[nodiscard]] bool has(int rank) const { return first_rank <= rank && rank <= last_rank; }
  [[nodiscard]] bool has(Span span) const { return span.start < end && (span.end > begin || span.start >= begin); }
};

// The processes of one run among others of the same file (a plan and its measured run).
struct TraceGroup {
  int first_pid = 1000;                       // pid = first_pid + rank
  std::string_view label = {};                // "rank 03 measured"
  std::span<const RankPeak> peaks = {};       // by rank, as they were measured; empty: those that the costs make
  std::span<const std::string> devices = {};  // by rank: "rank 03 measured on NVIDIA H100"; a plan has none
  TraceArgs about = {};                       // what else is to be known of it
};

// Writes one run; the timeline must have recorded spans.
void write_run(TraceWriter& writer, const Program& program, const Costs& costs, const Timeline& timeline,
               const TraceFilter& filter = {}, const TraceGroup& group = {});

// A whole file.
void write_chrome_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                        const TraceFilter& filter = {});

}  // namespace dualpipe
