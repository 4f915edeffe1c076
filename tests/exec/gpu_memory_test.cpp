// The memory of a GPU, as its allocator would report it.
#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/memory.h"

namespace dualpipe::test {

using detail::replay::charge_to_nobody;
using detail::replay::charge_to_this_thread;
using detail::replay::ChargeToNobody;
using detail::replay::MemoryMeter;
using detail::replay::WatchMemory;

namespace {

BOOST_AUTO_TEST_SUITE(exec_gpu_memory)

// A GPU of which there is nothing but its memory.
class MemoryOfGpu final : public Device {
 public:
  [[nodiscard]] at::Device where() const override { return {at::kCUDA, 0}; }
  void tell_of_memory(MemoryListener& listener) override { listener_ = &listener; }

  void allocated(void* data, Bytes size) const {
    if (listener_ != nullptr) listener_->allocated(data, size, at::kCUDA);
  }
  void freed(void* data) const {
    if (listener_ != nullptr) listener_->freed(data);
  }

  void begin_step() override {}
  void use(Stream) override {}
  [[nodiscard]] Stream used() const override { return {}; }
  [[nodiscard]] Event record_event() override { return {}; }
  void wait(const Event&) override {}
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event&) override { return tensor; }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event&) override { return tensor; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor; }
  void finish() override {}
  [[nodiscard]] Time time_of(const Event& event) const override { return event.time; }

 private:
  MemoryListener* listener_ = nullptr;
};

MemoryOfGpu gpu;
void* address(std::uintptr_t number) { return reinterpret_cast<void*>(number); }
void allocated(void* data, Bytes size) { gpu.allocated(data, size); }
void freed(void* data) { gpu.freed(data); }
// The tensor whose memory was reported.
at::Tensor tensor_at(void* data, std::int64_t size) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<std::size_t>(size),
                       c10::DataPtr(data, gpu.where()));
  return at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                  caffe2::TypeMeta::Make<std::uint8_t>());
}

BOOST_AUTO_TEST_CASE(blocks_of_a_gpu_are_counted_and_those_of_the_host_are_not) {
  MemoryMeter meter(gpu);
  const at::Tensor on_host = at::empty({5000}, at::kByte);
  BOOST_TEST(meter.peak() == 0);
  allocated(address(1), 1000);
  allocated(address(2), 500);
  freed(address(2));
  allocated(address(3), 300);
  BOOST_TEST(meter.held() == 1300);
  BOOST_TEST(meter.take_peak() == 1500);
  freed(address(3));
  freed(address(1));
  BOOST_TEST(meter.held() == 0);
}

BOOST_AUTO_TEST_CASE(a_meter_of_the_host_does_not_see_a_gpu) {
  std::thread([] {
    { const MemoryMeter other(gpu); }
    const MemoryMeter meter;
    allocated(address(1), 1000);
    const at::Tensor a = at::empty({10}, at::kByte);
    BOOST_TEST(meter.held() == 10);
    freed(address(1));
    BOOST_TEST(meter.held() == 10);
  }).join();
}

BOOST_AUTO_TEST_CASE(another_thread_may_free_a_block_of_a_gpu) {
  const MemoryMeter meter(gpu);
  allocated(address(1), 1000);
  allocated(address(2), 100);
  std::thread([] {
    const MemoryMeter other(gpu);
    freed(address(1));
    allocated(address(1), 50);  // its address comes back
    BOOST_TEST(other.held() == 50);
    freed(address(1));
  }).join();
  BOOST_TEST(meter.held() == 100);
  std::thread([] { freed(address(2)); }).join();  // that has never had a meter
  BOOST_TEST(meter.held() == 0);
  BOOST_TEST(meter.peak() == 1100);
}

BOOST_AUTO_TEST_CASE(what_a_gpu_frees_between_meters_counts) {
  const WatchMemory watch(gpu);
  {
    const MemoryMeter meter(gpu);
    allocated(address(1), 1000);
  }
  allocated(address(2), 70);  // nobody measures
  {
    const MemoryMeter meter(gpu);
    freed(address(2));
    BOOST_TEST(meter.held() == 0);
  }
  freed(address(1));
  const MemoryMeter meter(gpu);
  allocated(address(3), 100);
  BOOST_TEST(meter.peak() == 100);
  freed(address(3));
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
    freed(address(4096));
    freed(address(8192));
    BOOST_TEST(other.held() == 0);
  }).join();
  charge_to_this_thread(tensor_at(address(4096), 1000));  // not there any more
  BOOST_TEST(meter.held() == 0);
  BOOST_TEST(meter.peak() == 1000);
}

BOOST_AUTO_TEST_CASE(a_meter_of_a_gpu_leaves_the_place_of_profilers_and_the_host_alone) {
  const MemoryMeter meter(gpu);
  BOOST_TEST(c10::ThreadLocalDebugInfo::current() == nullptr);
  BOOST_TEST(c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator());
}

BOOST_AUTO_TEST_CASE(threads_of_a_gpu_count_for_themselves) {
  constexpr std::uintptr_t rounds = 2000;
  std::vector<std::thread> threads;
  for (std::uintptr_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([thread] {
      const MemoryMeter meter(gpu);
      for (std::uintptr_t i = 0; i < rounds; ++i) allocated(address((i * 4 + thread + 1) * 512), 512);
      BOOST_TEST(meter.held() == 512 * static_cast<Bytes>(rounds));
      for (std::uintptr_t i = 0; i < rounds; ++i) freed(address((i * 4 + thread + 1) * 512));
      BOOST_TEST(meter.held() == 0);
    });
  }
  for (std::thread& each : threads) each.join();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
