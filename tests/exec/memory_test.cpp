#include "dualpipe/exec/replay/memory.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace dualpipe::test {
namespace {

at::Tensor bytes(std::int64_t count) { return at::empty({count}, at::kByte); }

BOOST_AUTO_TEST_SUITE(exec_memory)

BOOST_AUTO_TEST_CASE(the_peak_is_what_was_held_at_a_time) {
  const MemoryMeter meter;
  {
    const at::Tensor a = bytes(1000);
    { const at::Tensor b = bytes(500); }
    const at::Tensor c = bytes(300);
    BOOST_TEST(meter.peak() == 1500);
    BOOST_TEST(meter.held() == 1300);
  }
  BOOST_TEST(meter.held() == 0);
  const at::Tensor d = bytes(1400);
  BOOST_TEST(meter.peak() == 1500);
  const at::Tensor e = bytes(200);
  BOOST_TEST(meter.peak() == 1600);
}

BOOST_AUTO_TEST_CASE(each_peak_that_is_taken_begins_anew) {
  MemoryMeter meter;
  const at::Tensor kept = bytes(100);
  { const at::Tensor a = bytes(1000); }
  BOOST_TEST(meter.take_peak() == 1100);
  BOOST_TEST(meter.take_peak() == 100);
  { const at::Tensor a = bytes(500); }
  BOOST_TEST(meter.take_peak() == 600);
  BOOST_TEST(meter.peak() == 1100);
  const at::Tensor b = bytes(2000);
  BOOST_TEST(meter.peak() == 2100);
}

BOOST_AUTO_TEST_CASE(it_counts_from_what_is_held_at_first) {
  at::Tensor kept;
  {
    const MemoryMeter meter;
    kept = bytes(1000);
    BOOST_TEST(meter.peak() == 1000);
  }
  const MemoryMeter meter;
  BOOST_TEST(meter.peak() == 0);
  kept.reset();
  const at::Tensor a = bytes(1100);
  BOOST_TEST(meter.peak() == 100);
}

BOOST_AUTO_TEST_CASE(what_was_allocated_unmeasured_is_never_counted) {
  at::Tensor before = bytes(1000);
  const MemoryMeter meter;
  charge_to_this_thread(before);
  before.reset();
  const at::Tensor a = bytes(10);
  BOOST_TEST(meter.peak() == 10);
}

// As oneDNN takes its scratch memory.
BOOST_AUTO_TEST_CASE(raw_memory_is_counted_and_freed) {
  c10::Allocator& allocator = *c10::GetCPUAllocator();
  void* const before = allocator.raw_allocate(100);
  const MemoryMeter meter;
  void* const raw = allocator.raw_allocate(1000);
  BOOST_TEST(meter.peak() == 1000);
  allocator.raw_deallocate(raw);
  allocator.raw_deallocate(before);
  allocator.raw_deallocate(allocator.raw_allocate(0));
  const at::Tensor a = bytes(1100);
  BOOST_TEST(meter.peak() == 1100);
}

BOOST_AUTO_TEST_CASE(another_thread_may_free_it) {
  const MemoryMeter meter;
  at::Tensor a = bytes(1000);
  std::thread([&a] {
    const MemoryMeter other;
    a.reset();
    const at::Tensor b = bytes(50);
    BOOST_TEST(other.peak() == 50);
  }).join();
  const at::Tensor c = bytes(900);
  BOOST_TEST(meter.peak() == 1000);
}

BOOST_AUTO_TEST_CASE(a_tensor_that_moves_is_charged_to_who_takes_it) {
  const MemoryMeter meter;
  at::Tensor a = bytes(1000);
  charge_to_nobody(a);
  const at::Tensor b = bytes(600);
  BOOST_TEST(meter.peak() == 1000);
  std::thread([&a] {
    const MemoryMeter other;
    charge_to_this_thread(a);
    BOOST_TEST(other.peak() == 1000);
    charge_to_this_thread(a);
    BOOST_TEST(other.peak() == 1000);
    a.reset();
    const at::Tensor c = bytes(900);
    BOOST_TEST(other.peak() == 1000);
  }).join();
  const at::Tensor c = bytes(500);
  BOOST_TEST(meter.peak() == 1100);
}

BOOST_AUTO_TEST_CASE(tensors_work_as_ever) {
  const MemoryMeter meter;
  at::Tensor a = at::arange(1000, at::kFloat);
  BOOST_TEST(reinterpret_cast<std::uintptr_t>(a.data_ptr()) % 64 == 0);
  BOOST_TEST(meter.peak() >= 4000);
  a.resize_({100'000});
  BOOST_TEST(a[999].item<float>() == 999);
  const at::Tensor b = a.clone();
  BOOST_TEST(meter.peak() >= 800'000);
  charge_to_nobody(at::Tensor());
  charge_to_nobody(at::empty({0}));
}

// --- a GPU, as its allocator would report

const at::Device gpu(at::kCUDA, 0);
void* address(std::uintptr_t number) { return reinterpret_cast<void*>(number); }
void allocated(void* data, Bytes size) { c10::reportMemoryUsageToProfiler(data, size, 0, 0, gpu); }
void freed(void* data, Bytes size) { c10::reportMemoryUsageToProfiler(data, -size, 0, 0, gpu); }
// The tensor whose memory was reported.
at::Tensor tensor_at(void* data, std::int64_t size) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<std::size_t>(size), c10::DataPtr(data, gpu));
  return at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                  caffe2::TypeMeta::Make<std::uint8_t>());
}

BOOST_AUTO_TEST_CASE(blocks_of_a_gpu_are_counted_and_those_of_the_host_are_not) {
  MemoryMeter meter(gpu);
  const at::Tensor on_host = bytes(5000);
  BOOST_TEST(meter.peak() == 0);
  allocated(address(1), 1000);
  allocated(address(2), 500);
  freed(address(2), 500);
  allocated(address(3), 300);
  BOOST_TEST(meter.held() == 1300);
  BOOST_TEST(meter.take_peak() == 1500);
  freed(address(3), 300);
  freed(address(1), 1000);
  BOOST_TEST(meter.held() == 0);
}

BOOST_AUTO_TEST_CASE(a_meter_of_the_host_does_not_see_a_gpu) {
  std::thread([] {
    { const MemoryMeter other(gpu); }
    const MemoryMeter meter;
    allocated(address(1), 1000);
    const at::Tensor a = bytes(10);
    BOOST_TEST(meter.held() == 10);
    freed(address(1), 1000);
    BOOST_TEST(meter.held() == 10);
  }).join();
}

BOOST_AUTO_TEST_CASE(another_thread_may_free_a_block_of_a_gpu) {
  const MemoryMeter meter(gpu);
  allocated(address(1), 1000);
  allocated(address(2), 100);
  std::thread([] {
    const MemoryMeter other(gpu);
    freed(address(1), 1000);
    allocated(address(1), 50);  // its address comes back
    BOOST_TEST(other.held() == 50);
    freed(address(1), 50);
  }).join();
  BOOST_TEST(meter.held() == 100);
  // One that has never had a meter is not heard, until somebody gets the block.
  std::thread([] { freed(address(2), 100); }).join();
  BOOST_TEST(meter.held() == 100);
  allocated(address(2), 30);
  BOOST_TEST(meter.held() == 30);
  freed(address(2), 30);
  BOOST_TEST(meter.peak() == 1100);
}

BOOST_AUTO_TEST_CASE(what_a_gpu_frees_between_meters_counts) {
  {
    const MemoryMeter meter(gpu);
    allocated(address(1), 1000);
  }
  allocated(address(2), 70);  // nobody measures
  {
    const MemoryMeter meter(gpu);
    freed(address(2), 70);
    BOOST_TEST(meter.held() == 0);
  }
  freed(address(1), 1000);
  const MemoryMeter meter(gpu);
  allocated(address(3), 100);
  BOOST_TEST(meter.peak() == 100);
  freed(address(3), 100);
}

BOOST_AUTO_TEST_CASE(a_tensor_of_a_gpu_that_moves_is_charged_to_who_takes_it) {
  const MemoryMeter meter(gpu);
  allocated(address(4096), 1000);
  at::Tensor a = tensor_at(address(4096), 1000);
  charge_to_nobody(a);
  BOOST_TEST(meter.held() == 0);
  {
    const ChargeToNobody guard;
    allocated(address(8192), 10);
  }
  BOOST_TEST(meter.held() == 0);
  std::thread([&a] {
    MemoryMeter other(gpu);
    charge_to_this_thread(a);
    charge_to_this_thread(a);
    // Another tensor over the same memory, as a device makes of what it adopts.
    charge_to_this_thread(tensor_at(address(4096), 1000));
    BOOST_TEST(other.held() == 1000);
    charge_to_this_thread(tensor_at(address(8192), 10));
    BOOST_TEST(other.take_peak() == 1010);
    freed(address(4096), 1000);
    freed(address(8192), 10);
    BOOST_TEST(other.held() == 0);
  }).join();
  charge_to_this_thread(tensor_at(address(4096), 1000));  // not there any more
  BOOST_TEST(meter.held() == 0);
  BOOST_TEST(meter.peak() == 1000);
}

BOOST_AUTO_TEST_CASE(threads_of_a_gpu_count_for_themselves) {
  constexpr std::uintptr_t rounds = 2000;
  std::vector<std::thread> threads;
  for (std::uintptr_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([thread] {
      const MemoryMeter meter(gpu);
      for (std::uintptr_t i = 0; i < rounds; ++i) allocated(address((i * 4 + thread + 1) * 512), 512);
      BOOST_TEST(meter.held() == 512 * static_cast<Bytes>(rounds));
      for (std::uintptr_t i = 0; i < rounds; ++i) freed(address((i * 4 + thread + 1) * 512), 512);
      BOOST_TEST(meter.held() == 0);
    });
  }
  for (std::thread& each : threads) each.join();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
