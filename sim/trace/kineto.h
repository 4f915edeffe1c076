// One file of torch.profiler's: the ops of a rank, by the ranges around them or by a given order. Private to sim/trace.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/trace/foreign.h"
#include "dualpipe/sim/trace/steps.h"

namespace dualpipe::detail::trace {

// What a file says of its rank. Times are nanoseconds since `base`.
struct KinetoRank : RankSteps {  // ops: from the first to the last operator; ProfilerStep's number, or how often the op
                                 // had run before
  std::int64_t base = 0;         // nanoseconds since 1970; 0 in old files
};

// `ranks`: how many there are. Throws InputError.
[[nodiscard]] KinetoRank read_kineto(const std::string& path, int ranks, const ForeignOptions& options);

// A piece of a rank's time in which it ran operators of one direction, between messages.
struct OperatorRun {
  Span span;
  Kind pass = Kind::forward;  // or backward, of B and of I
};

// Where no range says what ran: forwards are told from backwards by autograd, and ops from each other by the messages
// between them, and by where the direction changes. Runs without a link from a forward to its backward (`fwdbwd`) are
// none of the model's. In order of time.
[[nodiscard]] std::vector<OperatorRun> operator_runs(const std::string& path);

}  // namespace dualpipe::detail::trace
