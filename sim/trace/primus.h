// Files that hold starts and ends of ops and little else. Private to sim/trace.
#pragma once

#include <span>
#include <string>

#include "dualpipe/sim/trace/foreign.h"

namespace dualpipe::detail::trace {

// Primus: [{"fwd_start": [...], "fwd_end": [...], "bwd_start": [...], "bwd_end": [...], "memory": ...}, ...], an entry
// for each iteration, times in milliseconds, one for each forward or backward in the order run. With V chunks on P
// ranks the i-th forward is of chunk i / P mod V and micro-batch P (i / PV) + i mod P; of backwards the chunks come in
// reverse.
[[nodiscard]] ForeignRun read_primus(std::span<const std::string> paths, const ForeignOptions& options);

// The dump of PyTorch's simulator: slices named by their ops, the rank is the pid.
[[nodiscard]] ForeignRun read_pytorch_dump(const std::string& path);

}  // namespace dualpipe::detail::trace
