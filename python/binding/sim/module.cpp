// The module dualpipe._sim.
#include <nanobind/nanobind.h>

#include "python/binding/sim/costs.h"
#include "python/binding/sim/errors.h"
#include "python/binding/sim/schedule.h"
#include "python/binding/sim/sweep.h"
#include "python/binding/sim/table.h"
#include "python/binding/sim/timeline.h"

NB_MODULE(_sim, module) {
  using namespace dualpipe::python;
  module.doc() = "The simulator of pipeline schedules: dualpipe::sim.";
  bind_errors(module);
  bind_costs(module);
  bind_schedule(module);
  bind_timeline(module);
  bind_table(module);
  bind_sweep(module);
}
