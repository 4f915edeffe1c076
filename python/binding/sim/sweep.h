// Grids of points in Python.
#pragma once

#include <nanobind/nanobind.h>

namespace dualpipe::python {

void bind_sweep(nanobind::module_& module);

}  // namespace dualpipe::python
