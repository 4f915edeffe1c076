// Runs a Program under Costs.
//
// Every rank's order is fixed, so each time is a maximum of sums of earlier ones: nothing is decided by which event
// comes first, and no queue ordered by time is needed. The engine runs a rank until it waits for a message that has not
// been sent yet, and goes on with a rank whose message has been.
#pragma once

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

enum class Record : std::uint8_t {
  ranks,  // per-rank figures only
  ops,    // and the span of every op: 16 bytes each
  spans,  // and of every message
};

// A pure function: the same arguments give the same Timeline on any machine. The program must be valid (validate.h).
// Throws DeadlockError if it would hang, InputError if the costs do not fit the program.
[[nodiscard]] Timeline simulate(const Program& program, const Costs& costs, Record record = Record::spans);

}  // namespace dualpipe
