// How a Program ran: the whole, and every rank. Collected once, printed as text, JSON or CSV.
//
//   1f1b: 3 ranks, 3 stages, 1 chain, 4 micro-batches
//   per micro-batch, of a stage: F 1 ms, B 2 ms (I 1 ms, W 1 ms)
//   communication: latency, messages take no time
//   memory: M_B 600 MiB, parameters 8 GiB
//
//   makespan       18 ms   first start to last end, over all ranks
//   span           18 ms   the longest first-op-to-last-op span of any one rank
//   bubble        33.33%   by makespan: idle share of ranks x makespan (DeepSeek's)
//                 33.33%   by span: the same with the span (the zero-bubble papers')
//
//   rank   busy  idle   span  bubble  by span  parameters  peak act.  peak memory  in op    at  held then
//      0  12 ms  6 ms  18 ms  33.33%   33.33%     1 stage          3    9.758 GiB  0F2    2 ms  3 x 0F
//      1  12 ms  6 ms  15 ms  33.33%   33.33%     1 stage          2    9.172 GiB  1F1    2 ms  2 x 1F
//      2  12 ms  6 ms  12 ms  33.33%   33.33%     1 stage          1    8.586 GiB  2F0    2 ms  1 x 2F
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/title.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What a rank holds of one stage.
struct HeldOfStage {
  int stage = 0;
  std::size_t activations = 0;       // forwards whose B or I has not ended
  std::size_t weight_gradients = 0;  // I whose W is still to come

  friend bool operator==(const HeldOfStage&, const HeldOfStage&) = default;
};

// The moment at which a rank first holds the most bytes; without costs of memory, the most activations.
struct Peak {
  std::optional<Time> at;           // only where spans are recorded
  std::string op;                   // the cell that runs then, or is about to
  std::vector<HeldOfStage> stages;  // by stage
  std::vector<Op> ops;              // one F, or I whose W is to come, per entry

  friend bool operator==(const Peak&, const Peak&) = default;
};

struct RankReport {
  int rank = 0;
  Time busy = 0;
  Time idle = 0;  // makespan - busy: DeepSeek's bubble of the rank
  Time span = 0;
  // 1 - busy / cost, the cost of the whole run: its makespan, or the longest rank's span. Their means over the ranks
  // are the run's rates.
  double bubble_rate_makespan = 0;
  double bubble_rate_span = 0;
  int parameters = 0;  // stages whose parameters it holds
  int peak_activations = 0;
  Bytes peak_memory = 0;
  Peak peak;

  friend bool operator==(const RankReport&, const RankReport&) = default;
};

struct RunReport : ReportTitle {
  std::vector<std::string> remarks;  // what a reader has to know of what ran; a line each, below the title
  Time makespan = 0;
  Time span = 0;  // the longest rank's
  double bubble_rate_makespan = 0;
  double bubble_rate_span = 0;
  Time reduced = 0;  // when the last REDUCE_GRAD ended; 0 without any
  std::vector<RankReport> per_rank;
  Costs costs = {};        // that it was simulated with
  bool has_pairs = false;  // F&B

  friend bool operator==(const RunReport&, const RunReport&) = default;
};

[[nodiscard]] RunReport run_report(const Program& program, const Costs& costs, const Timeline& timeline);

[[nodiscard]] std::string to_text(const RunReport& report, const TextLayout& layout = {});
// One row per rank; times in nanoseconds.
[[nodiscard]] std::string to_csv(const RunReport& report);
// One object; `per_rank` has one per rank. Times in nanoseconds, `…_ns`. `peak` names all that is held.
void write_json(std::ostream& out, const RunReport& report);

}  // namespace dualpipe
