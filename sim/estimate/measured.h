// What was measured, in the place of what is estimated. Private to sim/estimate.
#pragma once

#include <vector>

#include "dualpipe/sim/estimate/estimate.h"

namespace dualpipe::detail::estimate {

// `parts`: as they are estimated for the request, which has measured ones. Throws InputError.
void take_measured(std::vector<StageCosts>& parts, const EstimateRequest& request);

}  // namespace dualpipe::detail::estimate
