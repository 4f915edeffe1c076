#include "dualpipe/exec/replay/memory.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {

using detail::replay::charge_to_nobody;
using detail::replay::charge_to_this_thread;
using detail::replay::held_by_this_thread;
using detail::replay::MemoryMeter;
using detail::replay::WatchMemory;

namespace {

at::Tensor bytes(std::int64_t count) { return at::empty({count}, at::kByte); }
c10::Allocator* allocator_now() { return c10::GetCPUAllocator(); }

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
  const WatchMemory watch;
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

// As oneDNN takes its scratch memory: it asks for the allocator each time.
BOOST_AUTO_TEST_CASE(raw_memory_is_counted_and_freed) {
  void* const before = allocator_now()->raw_allocate(100);
  const MemoryMeter meter;
  void* const raw = allocator_now()->raw_allocate(1000);
  BOOST_TEST(meter.peak() == 1000);
  allocator_now()->raw_deallocate(raw);
  allocator_now()->raw_deallocate(before);
  allocator_now()->raw_deallocate(allocator_now()->raw_allocate(0));
  const at::Tensor a = bytes(1100);
  BOOST_TEST(meter.peak() == 1100);
}

// --- in a process that is somebody else's

BOOST_AUTO_TEST_CASE(the_allocator_of_the_process_changes_only_while_somebody_measures) {
  c10::Allocator* const before = c10::GetDefaultCPUAllocator();
  BOOST_TEST(allocator_now() == before);
  {
    const WatchMemory watch;
    c10::Allocator* const metered = allocator_now();
    BOOST_TEST(metered != before);
    std::thread([metered] {
      const MemoryMeter meter;
      BOOST_TEST(allocator_now() == metered);
    }).join();
    BOOST_TEST(allocator_now() == metered);
  }
  BOOST_TEST(allocator_now() == before);
}

// It would be charged for ever, as its allocator did not say that it was freed; and its address comes back.
BOOST_AUTO_TEST_CASE(what_was_charged_is_forgotten_with_the_last_watch) {
  void* raw = nullptr;
  {
    const MemoryMeter meter;
    raw = allocator_now()->raw_allocate(1000);
    BOOST_TEST(held_by_this_thread() == 1000);
  }
  allocator_now()->raw_deallocate(raw);
  const MemoryMeter meter;
  BOOST_TEST(held_by_this_thread() == 0);
  allocator_now()->raw_deallocate(c10::GetDefaultCPUAllocator()->raw_allocate(1000));
  BOOST_TEST(meter.held() == 0);
}

BOOST_AUTO_TEST_CASE(what_nobody_measures_is_just_as_without_a_meter) {
  const WatchMemory watch;
  const at::Tensor a = bytes(1000);
  const c10::DataPtr& data = a.storage().data_ptr();
  BOOST_TEST(data.get_context() == data.get());
  BOOST_TEST((data.get_deleter() == c10::GetDefaultCPUAllocator()->raw_deleter()));
}

// Blocks of each kind from before, while, and after a meter, which each of the three others frees, on either thread.
BOOST_AUTO_TEST_CASE(blocks_stay_valid_whoever_frees_them) {
  constexpr std::size_t size = 1000;
  const auto use = [](void* data) {
    std::memset(data, 1, size);
    return data;
  };
  c10::Allocator& plain = *c10::GetDefaultCPUAllocator();
  std::vector<void*> raw;
  std::vector<at::Tensor> tensors;
  const auto allocate = [&] {
    for (int i = 0; i < 8; ++i) {
      raw.push_back(use(allocator_now()->raw_allocate(size)));
      tensors.push_back(bytes(size));
    }
  };
  const auto free_two = [&] {
    for (int i = 0; i < 2; ++i) {
      (i == 0 ? *allocator_now() : plain).raw_deallocate(raw.back());
      raw.pop_back();
      use(tensors.back().mutable_data_ptr());
      tensors.pop_back();
    }
  };
  allocate();
  std::optional<MemoryMeter> meter(std::in_place);
  free_two();
  std::thread(free_two).join();
  allocate();
  BOOST_TEST(meter->peak() == 2 * 8 * static_cast<Bytes>(size));
  free_two();
  std::thread(free_two).join();
  meter.reset();
  free_two();
  std::thread(free_two).join();
  allocate();
  meter.emplace();
  while (!raw.empty()) free_two();
}

BOOST_AUTO_TEST_CASE(a_tensor_that_outlives_its_meter_can_grow) {
  at::Tensor a;
  {
    const MemoryMeter meter;
    a = at::arange(1000, at::kFloat);
  }
  a.resize_({100'000});  // by the allocator that it is from
  BOOST_TEST(a[999].item<float>() == 999);
  const MemoryMeter meter;
  a.resize_({1'000'000});
  BOOST_TEST(meter.held() == 4'000'000);  // what it had before was forgotten
}

BOOST_AUTO_TEST_CASE(threads_may_allocate_while_meters_come_and_go) {
  std::atomic<bool> ended{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&ended] {
      std::vector<void*> raw;
      std::vector<at::Tensor> tensors;
      while (!ended) {
        raw.push_back(allocator_now()->raw_allocate(100));
        tensors.push_back(at::full({10}, 3.0));
        if (raw.size() < 50) continue;
        for (const at::Tensor& each : tensors) {
          if (each[9].item<float>() != 3) throw std::logic_error("a tensor changed");
        }
        for (void* const each : raw) allocator_now()->raw_deallocate(each);
        raw.clear();
        tensors.clear();
      }
      for (void* const each : raw) allocator_now()->raw_deallocate(each);
    });
  }
  for (int i = 0; i < 2000; ++i) {
    const MemoryMeter meter;
    const at::Tensor a = bytes(1000);
    if (meter.held() != 1000) BOOST_FAIL("another thread's memory is counted");
  }
  ended = true;
  for (std::thread& each : threads) each.join();
}

// As somebody's own would be: it says what it does, and hands it on.
class OtherAllocator final : public c10::Allocator {
 public:
  explicit OtherAllocator(c10::Allocator& below) : below_(below) {}
  c10::DataPtr allocate(std::size_t size) override {
    ++calls;
    return below_.allocate(size);
  }
  c10::DeleterFnPtr raw_deleter() const override { return below_.raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t size) const override { below_.copy_data(to, from, size); }
  int calls = 0;

 private:
  c10::Allocator& below_;
};

BOOST_AUTO_TEST_CASE(an_allocator_of_somebody_else_is_used_and_comes_back_with_its_priority) {
  constexpr std::uint8_t priority = 3;
  c10::Allocator& plain = *c10::GetDefaultCPUAllocator();
  OtherAllocator other(plain);
  c10::SetCPUAllocator(&other, priority);
  {
    const MemoryMeter meter;
    const at::Tensor a = bytes(1000);
    BOOST_TEST(meter.held() == 1000);
    BOOST_TEST(other.calls == 1);
  }
  BOOST_TEST(allocator_now() == &other);
  c10::SetCPUAllocator(&plain, priority - 1);
  BOOST_TEST(allocator_now() == &other);
  c10::SetCPUAllocator(&plain, priority);
  BOOST_TEST(allocator_now() == &plain);
}

// Somebody puts an allocator over the metered one, and leaves it there.
BOOST_AUTO_TEST_CASE(an_allocator_that_was_put_over_ours_stays_and_is_metered) {
  c10::Allocator& plain = *c10::GetDefaultCPUAllocator();
  std::optional<MemoryMeter> meter(std::in_place);
  OtherAllocator other(*allocator_now());
  std::uint8_t priority = 0;
  while (allocator_now() != &other) c10::SetCPUAllocator(&other, priority++);
  at::Tensor a = bytes(1000);
  void* const raw = other.raw_allocate(500);
  BOOST_TEST(meter->held() == 1500);
  meter.reset();
  BOOST_TEST(allocator_now() == &other);
  meter.emplace();
  {
    const at::Tensor b = bytes(300);
    BOOST_TEST(meter->held() == 300);
    a.reset();
    other.raw_deallocate(raw);
    other.raw_deallocate(other.raw_allocate(100));
    allocator_now()->raw_deallocate(plain.raw_allocate(100));
    BOOST_TEST(meter->held() == 300);
  }
  BOOST_TEST(meter->held() == 0);
  meter.reset();
  BOOST_TEST(allocator_now() == &other);
  for (std::uint8_t p = 0; allocator_now() != &plain; ++p) c10::SetCPUAllocator(&plain, p);
}

BOOST_AUTO_TEST_CASE(a_thread_has_one_meter) {
  const auto says = [](const std::string& text) {
    return [text](const InputError& error) { return std::string(error.what()).find(text) != std::string::npos; };
  };
  BOOST_CHECK_EXCEPTION(static_cast<void>(held_by_this_thread()), InputError, says("this thread has no MemoryMeter"));
  {
    const MemoryMeter meter;
    BOOST_CHECK_EXCEPTION(MemoryMeter(), InputError, says("this thread has a MemoryMeter already"));
    const at::Tensor a = bytes(10);
    BOOST_TEST(meter.held() == 10);
  }
  BOOST_TEST(allocator_now() == c10::GetDefaultCPUAllocator());
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
