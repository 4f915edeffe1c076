// Tables of schedules in Python.
#pragma once

#include <nanobind/nanobind.h>

namespace dualpipe::python {

void bind_table(nanobind::module_& module);

}  // namespace dualpipe::python
