// The GPU of the tests that need one.
#pragma once

#include "exec/device/device.h"

namespace dualpipe::test {

// Where there is none, the program says why and ends with status 77, which ctest counts as skipped.
[[nodiscard]] Hardware& gpu();

}  // namespace dualpipe::test
