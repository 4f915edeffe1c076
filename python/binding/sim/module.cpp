// The module dualpipe._sim.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"

namespace nb = nanobind;

NB_MODULE(_sim, module) {
  using namespace dualpipe;
  module.doc() = "The simulator of pipeline schedules: dualpipe::sim.";

  nb::exception<InputError>(module, "InputError", PyExc_ValueError);

  module.def(
      "names",
      [] {
        nb::list names;
        for (const Family& family : catalog()) names.append(family.name);
        return names;
      },
      nb::sig("def names() -> list[str]"), "The names of the schedules in the catalog.");
}
