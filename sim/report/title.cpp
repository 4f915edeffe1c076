#include "dualpipe/sim/report/title.h"

#include <fmt/core.h>

#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

ReportTitle title_of(const Schedule& schedule) {
  const Placement& placement = schedule.placement;
  return {schedule.name, placement.ranks, placement.stages(), placement.chains(), schedule.total_micro_batches()};
}

std::string title_text(const ReportTitle& title) {
  return fmt::format("{}: {}, {}, {}, {}", printable(title.schedule),
                     format_count(static_cast<std::uint64_t>(title.ranks), "rank"),
                     format_count(static_cast<std::uint64_t>(title.stages), "stage"),
                     format_count(static_cast<std::uint64_t>(title.chains), "chain"),
                     format_count(title.micro_batches, "micro-batch", "es"));
}

}  // namespace dualpipe
