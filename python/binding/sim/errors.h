// The exceptions of the library in Python.
#pragma once

#include <nanobind/nanobind.h>

namespace dualpipe::python {

void bind_errors(nanobind::module_& module);

}  // namespace dualpipe::python
