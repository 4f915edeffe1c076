// Whether it is true what the simulator says of a program: found out in another way, or checked step by step.
#pragma once

#include <string>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/deadlock.h"

namespace dualpipe::test {

// What simulate(), find_deadlock() or rank_memory() say otherwise than the oracle: the first difference, or nothing.
[[nodiscard]] std::string difference_from_oracle(const Program& program, const Costs& costs);

// What is wrong with a cycle, or nothing: each link must be an op or message that stands where it is said to, must
// really need what it is said to wait for, and the next link must be what keeps that from happening.
[[nodiscard]] std::string flaw_of(const Deadlock& deadlock, const Program& program);

}  // namespace dualpipe::test
