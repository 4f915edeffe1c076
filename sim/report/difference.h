// Two Timelines of one Program: what was planned, and what was measured.
//
//               planned   measured  measured / planned
//   makespan      18 ms   18.21 ms             101.17%
//   bubble       33.33%     33.94%
//   F              1 ms   1.002 ms             100.20%  median of 12
//   B              2 ms   2.003 ms             100.15%  median of 12
//
//   all ranks' time  planned   measured    more     (of planned and measured: how much more the run took, and for what)
//   busy               36 ms   36.06 ms   60 µs
//   B elsewhere         8 ms   8.012 ms   12 µs
//   launch              0 ns     540 µs  540 µs
//   …
//
//   starts off by  median     95%  at most
//   all             41 µs  150 µs   180 µs  0B3 of rank 0
//   F               30 µs   90 µs   110 µs  1F2 of rank 1
//   …
//   rank 0          35 µs  160 µs   180 µs  0B3
//   …
//
//   rank   busy planned   measured  idle planned   measured  peak act.  measured  peak memory   measured
//      0          12 ms   12.03 ms          6 ms    6.18 ms          3         3    1.221 MiB  1.221 MiB
//
// Starts count from the start of the run's first op. 95% of the starts are off by no more than the second figure says.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What a rank needed.
struct RankPeak {
  int activations = 0;  // forwards whose B or I has not ended
  Bytes memory = 0;

  friend bool operator==(const RankPeak&, const RankPeak&) = default;
};

template <typename T>
struct PlannedMeasured {
  T planned{};
  T measured{};

  friend bool operator==(const PlannedMeasured&, const PlannedMeasured&) = default;
};

// How far the starts of some ops are from their plan, early or late.
struct StartError {
  Time median = 0;        // the lower one of two in the middle
  Time percentile95 = 0;  // the least that 95% of them do not exceed
  Time largest = 0;
  std::string op;  // the cell with the largest, the first of equals; empty without ops
  int rank = 0;    // which runs that

  friend bool operator==(const StartError&, const StartError&) = default;
};

// The ops of one class: F, B, I, W or F&B.
struct ClassDifference {
  std::string op_class;
  std::size_t count = 0;                        // of those that both run
  PlannedMeasured<std::optional<Time>> median;  // duration; nothing where there are none
  StartError starts;

  friend bool operator==(const ClassDifference&, const ClassDifference&) = default;
};

struct RankDifference {
  int rank = 0;
  PlannedMeasured<Time> busy;
  PlannedMeasured<Time> idle;                     // makespan - busy
  PlannedMeasured<std::optional<Causes>> causes;  // of the idle time, where they are known
  PlannedMeasured<RankPeak> peak;
  StartError starts;

  friend bool operator==(const RankDifference&, const RankDifference&) = default;
};

// What the two of a pair take by themselves, and together; medians of the measured run.
struct Overlap {
  Time forward = 0;
  Time backward = 0;
  Time pair = 0;

  [[nodiscard]] double share_of_sum() const {
    return static_cast<double>(pair) / static_cast<double>(forward + backward);
  }
};

// Idle time of one cause, over all ranks.
struct CauseDifference {
  Cause cause = Cause::forward;
  PlannedMeasured<Time> idle;

  [[nodiscard]] Time more() const { return idle.measured - idle.planned; }
  friend bool operator==(const CauseDifference&, const CauseDifference&) = default;
};

struct Difference {
  PlannedMeasured<Time> makespan;
  std::vector<ClassDifference> classes;  // those that run
  std::vector<CauseDifference> causes;   // those that there are, first what the run has most more of; where known
  StartError starts;
  std::vector<RankDifference> per_rank;

  friend bool operator==(const Difference&, const Difference&) = default;
};

// One rank of a run, as far as it is compared.
struct RankRun {
  std::span<const Op> ops;
  std::span<const Span> spans;  // of the ops; both of a pair have the pair's
  RankPeak peak;
  std::optional<Causes> causes;  // of its idle time, where the run is whole and they are known
};

// By rank, of which both have as many. Where the runs are of two schedules, starts are those of the cells that a rank
// runs in both; of no cells, if the stages of the two are not the same.
[[nodiscard]] Difference difference(const PlannedMeasured<std::span<const RankRun>>& runs, bool has_same_stages = true);

// Nothing where the measured run had none of F, B and F&B by itself.
[[nodiscard]] std::optional<Overlap> overlap_of(const Difference& difference);

// `labels` stand above the columns.
[[nodiscard]] std::string to_text(const Difference& difference,
                                  const PlannedMeasured<std::string>& labels = {"planned", "measured"});
// One object: times in nanoseconds, `…_ns`.
void write_json(std::ostream& out, const Difference& difference);

}  // namespace dualpipe
