#include "exec/replay/memory.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <boost/test/unit_test.hpp>
#include <thread>

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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
