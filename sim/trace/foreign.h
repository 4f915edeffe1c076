// Traces of other tools: what ran on each rank, and when, as far as they tell.
//
//   kineto    torch.profiler's, one file per rank. An op is known by a range around it: PyTorch's own (`PP:2F0`,
//             `Forward 3`), our executor's (`2F0`), sail-sg's NVTX (`F3.1.27`), or one that a pattern of the user's
//             matches; without any, by the order that a given schedule has. Its time is not that of the range, which
//             holds the wait for a message, but from its first to its last operator, or kernel where there are any (by
//             correlation).
//   primus    AMD Primus' pp_rank_N.json, one file per rank: starts and ends of forwards and backwards in milliseconds
//   pytorch   the dump of PyTorch's schedule simulator: ops named `2F0`, a process per rank
//
// Kineto's files are read more than once, so that nothing is kept of events that are not looked for: memory grows with
// the ops of the schedule, and not with the file.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/explain/measured_messages.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/trace/run_reader.h"

namespace dualpipe {

enum class TraceFormat : std::uint8_t { dualpipe, kineto, primus, pytorch };

struct ForeignOptions {
  int chunks = 1;  // stages per rank, of formats that count forwards and backwards alone (primus)
  // Of a range's name (ECMAScript): its groups are pass (begins with F, B, I or W), micro-batch and, unless a rank has
  // one stage, stage; or pass alone, where there is a schedule.
  std::string range = {};
  std::optional<std::int64_t> step = std::nullopt;  // of several: ProfilerStep's number, or counted from 0
  const Schedule* schedule = nullptr;               // what ran; where ranges do not say it
};

struct ForeignRun {
  TraceRun run;
  std::vector<MeasuredMessage> messages;  // by link, then in order; empty: none were recorded
  // What ran, where that was known before measured_run(), which takes it: of a given schedule, or as the clocks were
  // brought together by it.
  std::optional<Program> program;
  std::optional<Time> clock_width;   // how much the clocks of two neighbours may still differ; none: there is one clock
  std::vector<std::string> remarks;  // a line each
};

// By what the file begins with, and what is in its first events. Throws InputError where it is no trace.
[[nodiscard]] TraceFormat format_of_trace(const std::string& path);

// The files of a run, one per rank where the format has that, in any order. Of several steps, the one that is asked
// for, or the one of median length. Throws InputError, naming file and place, for what is not JSON, ends early, or does
// not tell enough: then what to record is said.
[[nodiscard]] ForeignRun load_foreign_traces(std::span<const std::string> paths, TraceFormat format,
                                             const ForeignOptions& options = {});

}  // namespace dualpipe
