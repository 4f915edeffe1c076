// One step of a run, of the ops that files of several steps hold. Private to sim/trace.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/trace/foreign.h"
#include "dualpipe/sim/trace/matched_messages.h"

namespace dualpipe::detail::trace {

// What ran, and when.
struct RanOp {
  std::vector<Op> ops;  // one, or the two of an F&B pair
  Span span;
  std::int64_t step = 0;
};

struct RankSteps {
  std::string source;  // the file
  int rank = 0;
  std::vector<RanOp> ops;
  std::vector<RankMessage> messages = {};  // of all steps; where they were recorded
  bool lacks_peers = false;                // there are others, of which nobody knows to or from which rank
};

// Ranks must be there once each, from 0 on. Of several steps the one asked for, or that of median length, of two in the
// middle the shorter one. Times are as in the files. Throws InputError.
[[nodiscard]] ForeignRun one_step(std::vector<RankSteps> ranks, std::optional<std::int64_t> step);

// Shifts the ranks' times so that no op starts before its input is made and no message is received before it is sent,
// neither on one rank nor on the other: between the least and the most that a clock can be off by, in the middle. Sets
// clock_width to the largest difference of these; where messages go one way only nothing is known, and the clocks are
// taken as they are.
void align_clocks(ForeignRun& run, const Placement& placement);

// Whether any shift does that for two ranks of which messages go both ways.
[[nodiscard]] bool clocks_agree(const ForeignRun& run, const Placement& placement);

}  // namespace dualpipe::detail::trace
