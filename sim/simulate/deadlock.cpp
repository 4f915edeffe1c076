#include "dualpipe/sim/simulate/deadlock.h"

#include <fmt/core.h>

#include <utility>

#include "dualpipe/sim/simulate/execute.h"

namespace dualpipe {
namespace {

std::string line(const Wait& wait, const Placement& placement) {
  const std::string op = to_text(wait.op);
  const std::string awaited = to_text(wait.awaited);
  const int holder = placement.rank_of[wait.awaited.stage];
  const std::string whose = holder == wait.rank ? "" : fmt::format(" on rank {}", holder);
  if (wait.lane == Wait::Lane::compute) {
    return fmt::format("rank {} cannot run {} (op {}): it waits for {}{}", wait.rank, op, wait.position, awaited,
                       whose);
  }
  return fmt::format("rank {} cannot end {} (slot {}), nor start what is behind it: it waits for {}{}", wait.rank, op,
                     wait.position, awaited, whose);
}

}  // namespace

std::string to_text(const Deadlock& deadlock, const Placement& placement) {
  std::string text;
  for (const Wait& wait : deadlock.cycle) text += line(wait, placement) + "\n";
  return text;
}

DeadlockError::DeadlockError(Deadlock deadlock, const Placement& placement)
    : std::runtime_error("the program hangs; each of these waits for the next, and the last for the first:\n" +
                         to_text(deadlock, placement)),
      deadlock_(std::move(deadlock)) {}

std::optional<Deadlock> find_deadlock(const Program& program, CommunicationModel model) {
  Costs free;
  free.stages.resize(1);
  free.model = model;
  return detail::simulate::execute(program, free, Record::ranks).deadlock;
}

}  // namespace dualpipe
