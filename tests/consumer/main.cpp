// Generates, checks, lowers and simulates a schedule through the public headers alone.
#include <dualpipe/sim/generate/catalog.h>
#include <dualpipe/sim/schedule/lower.h>
#include <dualpipe/sim/schedule/validate.h>
#include <dualpipe/sim/simulate/simulate.h>

#include <cstdlib>
#include <iostream>

int main() {
  const dualpipe::Schedule schedule = dualpipe::generate("1f1b", {.ranks = 4, .micro_batches = 8});
  if (!dualpipe::validate(schedule).empty()) return EXIT_FAILURE;

  dualpipe::Costs costs;
  costs.stages.push_back({.forward = 1, .backward = 2, .input_gradient = 1, .weight_gradient = 1});
  const dualpipe::Timeline timeline = dualpipe::simulate(dualpipe::lower(schedule), costs);

  // Every rank has M(F + B) of work, and a bubble of (P - 1)(F + B).
  const dualpipe::Time expected = 8 * (1 + 2) + (4 - 1) * (1 + 2);
  std::cout << "makespan " << timeline.makespan() << ", expected " << expected << '\n';
  return timeline.makespan() == expected ? EXIT_SUCCESS : EXIT_FAILURE;
}
