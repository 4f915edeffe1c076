// The messages of a run, of which each rank's trace knows its own end. Private to sim/trace.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/trace/foreign.h"

namespace dualpipe::detail::trace {

// A send or a receive, as its rank recorded it.
struct RankMessage {
  int peer = 0;
  bool is_send = false;
  Bytes bytes = 0;  // 0: not recorded
  Span span;        // from when it was issued to when it had ended
};

// The k-th send of a rank to another one is what the k-th receive there gets. A pair of ranks of which one recorded
// more than the other is left out, with a remark. `ranks`: by rank; times as they are there.
[[nodiscard]] std::vector<MeasuredMessage> matched_messages(std::span<const std::vector<RankMessage>> ranks,
                                                            std::vector<std::string>& remarks);

}  // namespace dualpipe::detail::trace
