#include "dualpipe/sim/schedule/fingerprint.h"

namespace dualpipe {

std::uint64_t fingerprint(const Program& program) {
  Fingerprint result;
  result.add(program.schedule.placement.rank_of);
  result.add(program.schedule.placement.chain_begin);
  result.add(program.schedule.placement.weights_of);
  result.add(program.schedule.ops);
  result.add(program.schedule.rank_begin);
  result.add(program.communication);
  result.add(program.slot_begin);
  return result.value();
}

}  // namespace dualpipe
