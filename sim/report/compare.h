// Two runs, and how they differ: of one schedule, read from traces, as it was planned and measured; or simulated, of
// two schedules, or of one under two costs.
//
//   planned   out.json, planned           A  1f1b
//   measured  out.json, measured          B  zb1p
//                                         only in A: 64 B (0B0, …)
//                                         only in B: 60 I (0I0, …), 60 W (0W0, …), 4 B (3B3, …)
//
// and then what difference.h shows. A trace of a run that failed ends early; then both are compared up to there. The
// causes of idle time are those of two whole runs, read in one way for both: as explain_measured() does, by the spans.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/trace/run_reader.h"

namespace dualpipe {

struct NamedRun {
  std::string name;  // as errors and reports call it
  TraceRun run;
  std::optional<Program> program = std::nullopt;  // what ran, where it is known; else what the ops tell of it counts
};

// Cells of one class that only one of two schedules has on a rank.
struct OnlyCells {
  std::string op_class;
  std::size_t count = 0;
  std::string first;  // the cell; of the first rank

  friend bool operator==(const OnlyCells&, const OnlyCells&) = default;
};

struct Comparison {
  PlannedMeasured<std::string> names;
  PlannedMeasured<std::string> labels;  // what stands above columns
  PlannedMeasured<std::size_t> ops;     // of the whole runs; a pair is two
  std::size_t compared = 0;             // of the part that both ran
  bool is_of_one_schedule = true;       // planned and measured; else of two, or of one under two costs
  PlannedMeasured<std::size_t> stages;  // where they are not the same: then no op is compared
  PlannedMeasured<std::vector<OnlyCells>> only;
  Difference difference;  // its times are of that part, its peaks of the whole runs

  friend bool operator==(const Comparison&, const Comparison&) = default;
};

// Throws InputError where the runs have different ranks, or not the same ops in the same order: names one that differs.
[[nodiscard]] Comparison compare(const NamedRun& planned, const NamedRun& measured);

// A run as it can be compared. The timeline must have recorded spans; peaks are by rank.
[[nodiscard]] NamedRun run_of(std::string name, const Program& program, const Timeline& timeline,
                              std::span<const RankPeak> peaks);
// A program as it runs under some costs. Throws what simulate() does.
[[nodiscard]] NamedRun simulated(std::string name, const Program& program, const Costs& costs);
// Two schedules on the same ranks, or one under two costs: what both run is compared op by op, where their stages are
// on the same ranks. `labels` are their names for the columns. Throws InputError where the ranks are not as many.
[[nodiscard]] Comparison compare_schedules(const NamedRun& first, const NamedRun& second,
                                           const PlannedMeasured<std::string>& labels);

// A plan, and a run that was measured: where both are of one schedule as compare() does it, and else as
// compare_schedules().
[[nodiscard]] Comparison compare_plan(const NamedRun& planned, const NamedRun& measured);

[[nodiscard]] std::string to_text(const Comparison& comparison);
// One object: difference.h's, and planned, measured, planned_ops, measured_ops, compared_ops, only_in_planned and
// only_in_measured. Of two schedules the first is "planned".
void write_json(std::ostream& out, const Comparison& comparison);

}  // namespace dualpipe
