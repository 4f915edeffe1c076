// What a sweep found, for people: its rows by rank, plots, and a page that has all of it.
//
//   4 of 96 points, best first
//
//       point  schedule  t  P   d  M    makespan  data par.  tokens/s   MFU    bubble  memory   fits
//   1      17  zb1p      8  4   2  256  …
//
// Best is what has most tokens per second; of a sweep without tokens, most micro-batches in its time. What fits comes
// before what does not. Points that differ in their seed alone are one row: its figures, and its point, are those of
// the draw with the median step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/evaluate/draws.h"
#include "dualpipe/sim/report/plot_svg.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/sweep/grid.h"

namespace dualpipe {

// Over all draws of a row.
struct SweepDraws {
  Quantiles step;
  double bubble_low = 0;  // 5 % of the draws have no more
  double bubble_high = 0;
  // In what share of them its step is the shortest, of rows that fit and differ from it in what one can choose:
  // schedules, chunks and the like, recomputation, cuts; on --gpus also their shapes. Of others, which have another
  // cost, or other ranks or micro-batches, each has a winner of its own.
  double win_rate = 0;
};

struct SweepRow {
  std::size_t point = 0;
  std::string schedule;
  int tensor = 0;  // of a cluster
  int data = 0;
  int ranks = 0;
  std::int64_t micro_batches = 0;
  std::vector<std::string> values;  // of the columns that vary besides these, "" where it has none
  Time makespan = 0;
  Time step = 0;           // with what the copies exchange, of a cluster; else the makespan
  double bubble_rate = 0;  // by makespan
  Bytes memory = 0;
  std::optional<bool> fits;
  std::optional<double> tokens_per_second;
  std::optional<double> flops_utilization;
  std::optional<SweepDraws> draws;  // with several seeds

  // By which rows are ranked, the most first.
  [[nodiscard]] double rate() const {
    return tokens_per_second.value_or(static_cast<double>(micro_batches) /
                                      static_cast<double>(std::max<Time>(step, 1)));
  }
};

struct SweepReport {
  SweepGrid grid;
  std::size_t points = 0;  // of the grid; with several seeds, of each of these
  std::size_t seeds = 1;
  std::size_t left_out = 0;          // points without figures, counted in the same way
  std::string left_out_reason;       // of the first
  std::vector<std::string> columns;  // of SweepRow::values
  std::vector<SweepRow> rows;        // best first

  [[nodiscard]] bool has_memory() const;  // costs with bytes
};

// Of the files of a sweep, or of its shards. Throws InputError as merge_sweep_files() does, and where no point has
// figures, with the reason.
[[nodiscard]] SweepReport load_sweep_report(const std::vector<std::string>& paths);

// "96 points", or "96 points of 20 draws each".
[[nodiscard]] std::string points_text(const SweepReport& report);
// What the rows' time is called: a step, of a cluster, or the makespan.
[[nodiscard]] std::string time_name(const SweepReport& report);

// The first `rows_max` rows.
[[nodiscard]] std::string to_text(const SweepReport& report, std::size_t rows_max, const TextLayout& layout = {});

// tokens/s, or the bubble, against micro-batches, or the first other number that varies: the best of each schedule.
[[nodiscard]] Plot lines_plot(const SweepReport& report);
// Time against memory: all points, and those that no other is better than in both.
[[nodiscard]] Plot pareto_plot(const SweepReport& report);
// How the best of each schedule changes with an axis: its tokens/s, or its time for a micro-batch. Throws InputError
// where it is none that varies.
[[nodiscard]] Plot sensitivity_plot(const SweepReport& report, const std::string& axis);
// Of all axes that vary, and can be plotted so.
[[nodiscard]] std::vector<std::string> sensitivity_axes(const SweepReport& report);

// One page of HTML that needs nothing else: the best rows in a table that sorts, the plots, and of the best `details`
// a Gantt chart, memory, and why ranks idle.
void write_html(std::ostream& out, const SweepReport& report, std::size_t details = 8);

}  // namespace dualpipe
