// Estimates as costs files (costs_file.h). Beside the costs such a file says what they were estimated from, so that
// what reads it can estimate anew, for other parallel sizes:
//
//   "estimate": {"model": {"layers": 80, "hidden": 8192, …}, "sequence": 8192, "microbatch": 1, "tensor": 8, …}
//
// and "measured", where something was: its parts, as those of the file, and the sizes that they were measured with.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>

#include "dualpipe/sim/estimate/estimate.h"

namespace dualpipe {

void write_estimate(std::ostream& out, const Estimate& estimate);

// None: the costs were not estimated. Throws InputError with the place in the file.
[[nodiscard]] std::optional<EstimateRequest> load_estimate_request(const std::string& path);

// The object alone, in one line.
[[nodiscard]] std::string to_json_line(const EstimateRequest& request);
[[nodiscard]] EstimateRequest estimate_of_json(const std::string& text, const std::string& source);

}  // namespace dualpipe
