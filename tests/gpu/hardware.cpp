#include "tests/gpu/hardware.h"

#include <ATen/Parallel.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {
namespace {

constexpr int skipped = 77;

std::unique_ptr<Hardware> hardware_or_exit() {
  try {
    return cuda_hardware({});
  } catch (const InputError& error) {
    std::cout << "skipped: " << error.what() << '\n' << std::flush;
    std::_Exit(skipped);
  }
}

// Before the first test.
struct NeedsGpu {
  NeedsGpu() {
    at::set_num_threads(1);
    static_cast<void>(gpu());
  }
};
BOOST_TEST_GLOBAL_FIXTURE(NeedsGpu);

}  // namespace

Hardware& gpu() {
  static auto& hardware = *hardware_or_exit().release();  // CUDA ends before statics do
  return hardware;
}

bool gpu_is_double() { return gpu().description().starts_with("double of CUDA"); }

}  // namespace dualpipe::test
