#include "dualpipe/sim/simulate/simulate.h"

#include <utility>

#include "dualpipe/sim/simulate/execute.h"

namespace dualpipe {

Timeline simulate(const Program& program, const Costs& costs, Record record) {
  auto outcome = detail::simulate::execute(program, costs, record);
  if (outcome.deadlock) throw DeadlockError(std::move(*outcome.deadlock), program.schedule.placement);
  return std::move(outcome.timeline);
}

}  // namespace dualpipe
