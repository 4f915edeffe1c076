// Generates, checks, lowers and simulates a schedule, and reads its trace back, through the public headers alone. The
// reader of traces needs zlib, which a static library leaves to its user.
#include <dualpipe/sim/generate/catalog.h>
#include <dualpipe/sim/schedule/lower.h>
#include <dualpipe/sim/schedule/validate.h>
#include <dualpipe/sim/simulate/simulate.h>
#include <dualpipe/sim/trace/chrome_trace.h>
#include <dualpipe/sim/trace/run_reader.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

int main() {
  const dualpipe::Schedule schedule = dualpipe::generate("1f1b", {.ranks = 4, .micro_batches = 8});
  if (!dualpipe::validate(schedule).empty()) return EXIT_FAILURE;

  dualpipe::Costs costs;
  costs.stages.push_back({.forward = 1, .backward = 2, .input_gradient = 1, .weight_gradient = 1});
  const dualpipe::Program program = dualpipe::lower(schedule);
  const dualpipe::Timeline timeline = dualpipe::simulate(program, costs);

  // Every rank has M(F + B) of work, and a bubble of (P - 1)(F + B).
  const dualpipe::Time expected = 8 * (1 + 2) + (4 - 1) * (1 + 2);
  std::cout << "makespan " << timeline.makespan() << ", expected " << expected << '\n';
  if (timeline.makespan() != expected) return EXIT_FAILURE;

  std::stringstream trace;
  dualpipe::write_chrome_trace(trace, program, costs, timeline);
  const auto runs = dualpipe::read_chrome_trace(trace, "the trace");
  return runs.at(0).ranks.size() == 4 ? EXIT_SUCCESS : EXIT_FAILURE;
}
