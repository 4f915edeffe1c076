// The file of `dualpipe-sim --costs` and `dualpipe-run --calibrate`: what the parts of a model cost, or what the stages
// of one schedule do.
//
//   {
//     "format": "dualpipe-costs", "version": 1,
//     "parts": [{"forward_ns": 1000, "backward_ns": 2000, "input_gradient_ns": 1000, "weight_gradient_ns": 1000,
//                "recompute_ns": 800, "overlapped_ns": 2500,
//                "activation_bytes": 64, "recompute_activation_bytes": 16, "weight_stash_bytes": 0, "message_bytes": 0,
//                "forward_workspace_bytes": 0, "backward_workspace_bytes": 0, "input_gradient_workspace_bytes": 0,
//                "weight_gradient_workspace_bytes": 0, "overlapped_workspace_bytes": 0,
//                "parameter_bytes": 0, "gradient_bytes": 0, "optimizer_bytes": 0}],
//     "cut": [1],
//     "communication": "links", "latency_ns": 500, "bandwidth_bytes_per_s": 5e10, "launch_ns": 0,
//     "speed": [1, 1, 0.5, 1], "jitter": 0.05, "seed": 7, "release_early": false
//   }
//
// "parts" are those of a model, in its order (ModelCosts), and serve every schedule; "cut", which only they have, says
// how many of them each stage of a chain gets. "stages" in their place is one entry for all stages of a schedule, or
// one for each. An "estimate" says what costs were estimated from (estimate_file.h); here it means nothing. "count": 30
// in an entry stands for so many alike, one after the other. All but format, version and parts or stages may be left
// out; of a part all but F, B, I and W.
#pragma once

#include <iosfwd>
#include <string>

#include "dualpipe/sim/costs/model_costs.h"

namespace dualpipe {

// Throws InputError with the place in the file.
[[nodiscard]] GivenCosts read_costs(std::istream& in, const std::string& source);
// The same of a file; throws InputError, too, where it cannot be opened.
[[nodiscard]] GivenCosts load_costs(const std::string& path);
void write_costs(std::ostream& out, const GivenCosts& costs);

}  // namespace dualpipe
