#include "dualpipe/sim/report/window.h"

#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

Span window_of(const Timeline& timeline, Span since_first_op) {
  if (since_first_op.start < 0) throw InputError("the begin must not be before the run");
  if (since_first_op.end <= since_first_op.start) throw InputError("the end must be after the begin");
  const Span run = detail::report::bounds_of(timeline);
  const Time length = run.end - run.start;
  if (since_first_op.start >= length) {
    throw InputError(fmt::format("it begins at {}, and the run ends at {}", format_time_exact(since_first_op.start),
                                 format_time_exact(length)));
  }
  return {run.start + since_first_op.start, run.start + std::min(since_first_op.end, run_time_max)};
}

}  // namespace dualpipe
