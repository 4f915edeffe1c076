// The double of CUDA (tests/cuda_double) ends the program where streams race. So this one is not among the tests of a
// GPU.
#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>

#include "dualpipe/exec/device/device.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

const at::TensorOptions on_gpu(at::kCUDA);
constexpr std::int64_t count = 1 << 20;

BOOST_AUTO_TEST_SUITE(cuda_double_race)

BOOST_AUTO_TEST_CASE(without_a_wait) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  const at::Tensor made = at::full({count}, 3.0, on_gpu);
  device->use({Stream::Kind::compute, 1});
  static_cast<void>(made + 1);
}

// The allocator gives the memory of what is dropped to the next tensor of the stream that made it.
BOOST_AUTO_TEST_CASE(with_memory_that_went_back_too_early) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  at::Tensor made = at::full({count}, 3.0, on_gpu);
  const Event ready = device->record_event();
  device->use({Stream::Kind::compute, 1});
  device->wait(ready);  // and not adopt()
  static_cast<void>(made + 1);
  made.reset();
  device->use({Stream::Kind::compute, 0});
  static_cast<void>(at::full({count}, 4.0, on_gpu));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
