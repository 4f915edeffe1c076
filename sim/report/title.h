// What a report is of.
#pragma once

#include <cstdint>
#include <string>

#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

struct ReportTitle {
  std::string schedule;
  int ranks = 0;
  int stages = 0;
  int chains = 0;
  std::uint64_t micro_batches = 0;  // over all chains

  friend bool operator==(const ReportTitle&, const ReportTitle&) = default;
};

[[nodiscard]] ReportTitle title_of(const Schedule& schedule);

// "1f1b: 3 ranks, 3 stages, 1 chain, 4 micro-batches"
[[nodiscard]] std::string title_text(const ReportTitle& title);

}  // namespace dualpipe
