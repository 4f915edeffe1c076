// The GPU of the tests that need one.
#pragma once

#include "dualpipe/exec/device/device.h"

namespace dualpipe::test {

// Where there is none, the program says why and ends with status 77, which ctest counts as skipped.
[[nodiscard]] Hardware& gpu();

// Whether the host stands for it (tests/cuda_double): it needs minutes for what keeps a GPU busy for milliseconds.
[[nodiscard]] bool gpu_is_double();

}  // namespace dualpipe::test
