// Two runs of one schedule, read from traces, and how they differ:
//
//   planned   out.json, planned
//   measured  out.json, measured
//
// and then what difference.h shows. A trace of a run that failed ends early; then both are compared up to there.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <string>

#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/trace/run_reader.h"

namespace dualpipe {

struct NamedRun {
  std::string name;  // as errors and reports call it
  TraceRun run;
};

struct Comparison {
  PlannedMeasured<std::string> names;
  PlannedMeasured<std::size_t> ops;  // of the whole runs; a pair is two
  std::size_t compared = 0;          // of the part that both ran
  Difference difference;             // its times are of that part, its peaks of the whole runs

  friend bool operator==(const Comparison&, const Comparison&) = default;
};

// Throws InputError where the runs have different ranks, or not the same ops in the same order: names one that differs.
[[nodiscard]] Comparison compare(const NamedRun& planned, const NamedRun& measured);

[[nodiscard]] std::string to_text(const Comparison& comparison);
// One object: difference.h's, and planned, measured, planned_ops, measured_ops and compared_ops.
void write_json(std::ostream& out, const Comparison& comparison);

}  // namespace dualpipe
