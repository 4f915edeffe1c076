// A critical path as a short list: runs of like steps are one line. Private to sim/report.
//
//   from    for    critical path
//   0       8 ms   F0, from rank 0 to rank 7
//   8 ms   30 ms   rank 7: I0 F1 I1 F2 … (20 ops)
//   38 ms   9 ms   I8, from rank 7 to rank 0
#pragma once

#include <span>
#include <string>

#include "dualpipe/sim/report/explain_report.h"

namespace dualpipe::detail::report {

[[nodiscard]] std::string path_text(std::span<const ReportedStep> path);

}  // namespace dualpipe::detail::report
