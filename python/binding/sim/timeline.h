// Timelines in Python: what happened when a schedule ran, predicted or measured.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::python {

// A run, and all that its reports need. Its timeline has spans.
struct TimelineValue {
  Program program;
  Costs costs;
  Timeline timeline;
  std::vector<std::string> remarks = {};
  ByteUnits units = ByteUnits::binary;    // of texts
  std::vector<RankPeak> peaks = {};       // by rank, as they were measured; empty: it is a prediction
  std::vector<std::string> devices = {};  // by rank, that it was measured on
};

void bind_timeline(nanobind::module_& module);

}  // namespace dualpipe::python
