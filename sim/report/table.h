// Schedules side by side: time, memory, and what of it is whose fault.
//
//     schedule  makespan  vs 1f1b  bubble  imbalance  memory   fits             closed form    it says  it holds
//   * zb1p        67 ms   1.21x  10.45%      2.10%  38.2 GB  yes              (P-1)(F+B-2W)     7 ms  yes
//     1f1b        81 ms   1.00x  25.93%      2.10%  38.2 GB  yes              (P-1)(F+B)       21 ms  yes
//     dualpipe    66 ms   1.23x   9.09%      2.10%  41.1 GB  no, 1.1 GB over  …
//
// Computed once, printed as text, markdown, CSV or JSON.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/evaluate/draws.h"
#include "dualpipe/sim/report/closed_form.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What is equal between the rows when some schedules put several stages on a rank.
enum class EqualTerms : std::uint8_t {
  ranks,   // one model on the same ranks: where a schedule has V stages per chain and rank, each is 1/V of a rank's
           // share
  stages,  // as in DeepSeek's table: the same stages, and such a schedule runs on 1/V of the ranks
};

// By what rows of the same ranks and micro-batches are sorted, least first; or not at all.
enum class TableSort : std::uint8_t { makespan, bubble, memory, none };

struct TableSchedule {
  std::string name;                // of the catalog; or, with a program, how it is called
  std::optional<Program> program;  // of a file; valid (validate.h)
};

struct TableRequest {
  std::vector<TableSchedule> schedules = {};  // empty: all that the catalog has; of equal stages, those of DeepSeek's
  // A row for each pair. The ranks are those of a schedule with one stage per rank. A file has its own shape.
  std::vector<int> ranks = {1};
  std::vector<std::int64_t> micro_batches = {1};
  Shape parameters = {};  // chunks and the like, of the families that take them; the counts are those above
  EqualTerms terms = EqualTerms::ranks;
  // Of equal ranks they are those of a model: one entry for all stages is each rank's share of it, several are its
  // parts in order. Of equal stages they are those of the stages, where they are not of a model.
  GivenCosts costs = {};
  std::optional<Bytes> memory_limit = {};     // of the peak of every rank
  std::vector<Recomputation> recompute = {};  // a row for each; empty: those that the costs know
  int seeds = 0;                              // how many runs that differ, from the costs' seed on; 0: one
  // In each of these one rank, drawn anew, is so fast, and no other: below 1 a straggler.
  std::optional<double> straggler = {};
  std::optional<double> tokens = {};      // of one micro-batch
  std::optional<double> flops = {};       // of one micro-batch, forward and backward of the whole model
  std::optional<double> peak_flops = {};  // of one rank, per second
  TableSort sort = TableSort::makespan;
};

struct TableRow {
  std::string schedule;
  int ranks = 0;
  std::int64_t micro_batches = 0;  // over all chains
  int stages = 0;
  std::optional<Recomputation> recompute;  // where the costs know both
  std::optional<ClosedForm> form;          // none: not known
  Time bubble = 0;                         // what to compare the form with
  Time makespan = 0;
  Time span = 0;
  std::optional<Quantiles> makespans;  // with seeds
  // In how many of them it is the shortest of its ranks and micro-batches that fits; where several are, the first is.
  std::optional<double> win_rate;
  // What no schedule of its placement, with no more activations at once, can be shorter than (search/bounds.h). None:
  // with jitter; or where F&B is assumed, and a pair only saves a launch.
  std::optional<Time> lower_bound;
  double bubble_rate_makespan = 0;  // is imbalance_rate, and what the order of the schedule makes
  double bubble_rate_span = 0;
  double imbalance_rate = 0;       // what the rank with most work has more than the mean, as a share of the makespan
  double idle_per_ideal = 0;       // idle over busy time: Megatron-LM's (arXiv:2104.04473, section 2.2.1)
  std::optional<double> speedup;   // 1F1B's makespan over this one, with the same ranks and micro-batches
  int peak_activations_least = 0;  // over the ranks; of stages
  int peak_activations_most = 0;
  // How much of a rank's share of the model one stage is: activations and parameters times it can be compared. 1 where
  // stages are equal.
  double share = 1;
  int parameters = 0;         // stages whose parameters a rank holds
  Bytes peak_memory = 0;      // of the rank that needs most
  std::optional<Bytes> room;  // what the limit leaves; negative: what is too much
  std::optional<double> tokens_per_second;
  std::optional<double> flops_utilization;  // model FLOP/s over the peak of all ranks (arXiv:2204.02311, appendix B)
  bool has_pairs = false;
  bool overlapped_is_assumed = false;  // it has, and the costs no F&B: F + B instead
  bool is_best = false;                // of equal ranks: the shortest of its ranks and micro-batches that fits

  [[nodiscard]] bool fits() const { return !room || *room >= 0; }
  [[nodiscard]] Time time() const { return makespans ? makespans->median : makespan; }  // what rows are sorted by
};

// What has no row, and why.
struct LeftOut {
  std::string schedule;
  int ranks = 0;
  std::int64_t micro_batches = 0;
  std::string reason;
};

struct ScheduleTable {
  TableRequest request;
  std::vector<TableRow> rows;
  std::vector<LeftOut> left_out;
};

// Those of a request that names none.
[[nodiscard]] std::vector<std::string> default_schedules(EqualTerms terms);

// Throws InputError: an unknown name, costs that do not fit, seeds without jitter, a limit without bytes, a
// recomputation that the costs do not know; and where there is no row at all, with the reasons.
[[nodiscard]] ScheduleTable schedule_table(TableRequest request);

[[nodiscard]] std::string to_text(const ScheduleTable& table, const TextLayout& layout = {});
[[nodiscard]] std::string to_markdown(const ScheduleTable& table, const TextLayout& layout = {});
[[nodiscard]] std::string to_html(const ScheduleTable& table, const TextLayout& layout = {});  // a part of a page
[[nodiscard]] std::string to_csv(const ScheduleTable& table);                                  // times in nanoseconds
[[nodiscard]] std::string to_json(const ScheduleTable& table);  // `rows`, `left_out`, and what was asked for

}  // namespace dualpipe
