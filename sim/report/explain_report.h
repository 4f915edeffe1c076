// Why a run is as long as it is: what explain() and what_if() found, collected once, printed as text or JSON.
//
//   makespan   18 ms   first start to last end, over all ranks
//   ideal      15 ms   no order of the same ops on the same ranks is shorter
//   busy       36 ms   over all ranks
//   idle       18 ms   33.33% by makespan (DeepSeek's), 33.33% by span (the zero-bubble papers')
//
//   idle          by cause       most of it                       (of all ranks; then a table by rank)
//   44.44%  8 ms  B elsewhere    rank 1: 4 ms (1B0)
//   …
//   while idle: nothing was ready 88.89%, ready, later in the order 11.11%
//
//   critical path: F 4 ms, B 14 ms
//   from      for   what runs
//   0 ms     3 ms   F0 on ranks 0 to 2
//   3 ms     …
//
//   what if                            makespan    gain
//   B of all stages 10 % faster         16.7 ms   7.22%
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/explain/what_if.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/title.h"

namespace dualpipe {

// Where the time of a cause comes from: a rank, or a link.
struct CauseSource {
  int rank = 0;           // that ran what was waited for, or sent it
  std::optional<int> to;  // of a message, the rank that it goes to
  Time time = 0;
  std::string op;  // the cell, or message, that most of it is due to

  friend bool operator==(const CauseSource&, const CauseSource&) = default;
};

struct CauseReport {
  Cause cause = Cause::forward;
  Time time = 0;                     // over all ranks
  std::vector<CauseSource> sources;  // the largest first

  friend bool operator==(const CauseReport&, const CauseReport&) = default;
};

struct RankCauses {
  int rank = 0;
  Time busy = 0;
  std::array<Time, 5> passes{};  // of the busy time: F, B, I, W, F&B
  Time idle = 0;
  Causes causes;

  friend bool operator==(const RankCauses&, const RankCauses&) = default;
};

// An op that others waited for.
struct AwaitedOp {
  std::string op;  // the cell
  int rank = 0;
  Time idle = 0;    // of all ranks, while it ran
  Time excess = 0;  // what of it is above the median of its stage

  friend bool operator==(const AwaitedOp&, const AwaitedOp&) = default;
};

struct ReportedStep {
  PathStep::Kind kind = PathStep::Kind::op;
  std::string op;     // the cell, or the message
  int op_class = -1;  // F, B, I, W or F&B, by number; -1: no op
  std::uint32_t micro_batch = 0;
  int rank = 0;
  Span span;  // since the start of the run

  friend bool operator==(const ReportedStep&, const ReportedStep&) = default;
};

// An op as it was measured.
struct ReportedOp {
  std::string op;
  int rank = 0;
  Span span;

  friend bool operator==(const ReportedOp&, const ReportedOp&) = default;
};

struct ExplainReport : ReportTitle {
  std::vector<std::string> remarks;
  std::optional<Costs> costs;  // that it was simulated with; none: it was measured
  bool has_pairs = false;
  Time makespan = 0;
  Time ideal = 0;
  Time busy = 0;
  Time idle = 0;
  double bubble_rate_makespan = 0;
  double bubble_rate_span = 0;
  Bytes peak_memory = 0;            // of the rank that needs most
  std::vector<CauseReport> causes;  // those that there are, the largest first
  std::array<Time, readiness_names.size()> readiness{};
  std::vector<RankCauses> per_rank;
  std::vector<ReportedStep> path;
  std::vector<AwaitedOp> awaited;  // the largest first, at most 20
  std::vector<WhatIf> what_if;
  // Of traces alone.
  std::vector<ReportedOp> ops;      // by rank, then in the order in which they ran
  std::optional<Time> clock_width;  // how much the clocks of two ranks may still differ

  friend bool operator==(const ExplainReport&, const ExplainReport&) = default;
};

// `costs`: that it was simulated with.
[[nodiscard]] ExplainReport explain_report(const Program& program, const std::optional<Costs>& costs,
                                           const Timeline& timeline, const Explanation& explanation);

// By rank, in order; since the start of the run.
[[nodiscard]] std::vector<ReportedOp> reported_ops(const Program& program, const Timeline& timeline);

[[nodiscard]] std::string to_text(const ExplainReport& report, const TextLayout& layout = {});
// One object; times in nanoseconds, `…_ns`.
void write_json(std::ostream& out, const ExplainReport& report);

}  // namespace dualpipe
