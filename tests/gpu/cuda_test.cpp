// Devices of a GPU.
#include <ATen/ATen.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

constexpr Lane first{Lane::Kind::compute, 0};
constexpr Lane second{Lane::Kind::compute, 1};
constexpr std::int64_t count = 1 << 18;

at::TensorOptions on_gpu() { return at::TensorOptions(at::kFloat).device(at::kCUDA); }

// Work for some milliseconds.
void keep_busy() {
  const std::int64_t size = gpu_is_double() ? 192 : 4096;
  at::Tensor product = at::full({size, size}, 0.5, on_gpu());
  for (int i = 0; i < 10; ++i) product = at::mm(product, product).mul_(1e-3);
}

bool all_are(const at::Tensor& tensor, double value) { return at::all(tensor.eq(value)).item<bool>(); }

BOOST_AUTO_TEST_SUITE(gpu_cuda)

BOOST_AUTO_TEST_CASE(a_device_is_on_the_gpu) {
  const auto device = gpu().device(0, 1, 2);
  BOOST_TEST(device->where().is_cuda());
  BOOST_TEST(!gpu().description().empty());
  BOOST_TEST((device->used() == Lane{}));
  BOOST_TEST((at::ones({2}, on_gpu()).device() == device->where()));
}

BOOST_AUTO_TEST_CASE(marks_know_times_by_the_hosts_clock) {
  const auto device = gpu().device(0, 1, 2);
  for (int step = 0; step < 3; ++step) {
    device->begin_step();
    device->use(first);
    const Time before = now();
    const Mark start = device->mark();
    keep_busy();
    const Mark end = device->mark();
    const Time queued = now();
    device->finish();
    const Time after = now();
    constexpr Time tolerance = 200'000;
    BOOST_TEST(device->time_of(start) >= before - tolerance);
    BOOST_TEST(device->time_of(start) <= device->time_of(end));
    BOOST_TEST(device->time_of(end) <= after + tolerance);
    if (step > 0) BOOST_TEST(device->time_of(end) > queued);  // the thread was ahead
  }
}

BOOST_AUTO_TEST_CASE(marks_of_another_rank_are_comparable) {
  const auto one = gpu().device(0, 2, 1);
  one->begin_step();
  one->use(first);
  keep_busy();
  const Mark early = one->mark();
  one->finish();
  const Time expected = one->time_of(early);
  const auto two = gpu().device(1, 2, 1);
  two->begin_step();  // later than the mark
  two->use(first);
  two->wait(early);
  two->finish();
  BOOST_TEST(std::abs(two->time_of(early) - expected) < 100'000);
}

BOOST_AUTO_TEST_CASE(lanes_run_side_by_side_and_wait_for_marks) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  device->use(first);
  keep_busy();
  const at::Tensor a = at::full({count}, 3.0, on_gpu());
  const Mark ready = device->mark();
  device->use(second);
  const Mark unbound = device->mark();
  at::Tensor b = device->adopt(a, ready) + 1;
  const Mark bound = device->mark();
  device->finish();
  BOOST_TEST(device->time_of(unbound) < device->time_of(ready));
  BOOST_TEST(device->time_of(bound) >= device->time_of(ready));
  BOOST_TEST(all_are(b, 4.0));
}

// The memory of what was adopted is not used again while the other lane still reads it.
BOOST_AUTO_TEST_CASE(adopted_memory_is_kept_until_it_has_been_read) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  for (int i = 0; i < 50; ++i) {
    device->use(first);
    at::Tensor a = at::full({count}, i, on_gpu());
    const Mark ready = device->mark();
    device->use(second);
    at::Tensor adopted = device->adopt(std::move(a), ready);
    keep_busy();
    const at::Tensor seen = adopted.clone();
    adopted.reset();
    device->use(first);
    for (int k = 0; k < 4; ++k) static_cast<void>(at::full({count}, -1.0, on_gpu()));
    device->use(second);
    BOOST_TEST(all_are(seen, i));
  }
  device->finish();
}

// The lane that is used when the device has finished goes on without another use().
BOOST_AUTO_TEST_CASE(adopted_memory_is_kept_after_the_device_has_finished) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  device->use(first);
  at::Tensor a = at::full({count}, 3.0, on_gpu());
  const Mark ready = device->mark();
  device->use(second);
  device->finish();
  at::Tensor adopted = device->adopt(std::move(a), ready);
  keep_busy();
  const at::Tensor seen = adopted.clone();
  adopted.reset();
  device->use(first);
  static_cast<void>(device->mark());  // gives back what may be
  static_cast<void>(at::full({count}, -1.0, on_gpu()));
  device->finish();
  BOOST_TEST(all_are(seen, 3.0));
}

BOOST_AUTO_TEST_CASE(messages_are_handed_over_or_copied) {
  const auto copying = cuda_hardware({.copy = true});
  for (Hardware* const hardware : {&gpu(), copying.get()}) {
    const auto sender = hardware->device(0, 2, 1);
    sender->begin_step();
    sender->use(first);
    keep_busy();
    at::Tensor message = at::full({count}, 7.0, on_gpu());
    const void* const data = message.data_ptr();
    const Mark sent = sender->mark();
    // The rank's own thread has a current stream of its own.
    std::thread([&] {
      const auto receiver = hardware->device(1, 2, 1);
      receiver->begin_step();
      receiver->use(first);
      Mark ready = sent;
      at::Tensor taken = receiver->take(std::move(message), ready);
      BOOST_TEST((receiver->used() == first));
      BOOST_TEST((taken.data_ptr() == data) == (hardware != copying.get()));
      BOOST_TEST((ready.event == sent.event) == (hardware != copying.get()));
      const at::Tensor sum = taken + 1;
      taken.reset();
      receiver->finish();
      BOOST_TEST(receiver->time_of(ready) > 0);
      BOOST_TEST(all_are(sum, 8.0));
    }).join();
    sender->finish();
  }
}

BOOST_AUTO_TEST_CASE(an_exchange_is_a_copy) {
  const auto device = gpu().device(0, 1, 1);
  device->begin_step();
  device->use({Lane::Kind::exchange, 0});
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong}) {
    std::vector<at::Tensor> got;
    std::vector<at::Tensor> given;
    for (int i = 0; i < 20; ++i) {
      given.push_back(at::arange(60, at::TensorOptions(type).device(at::kCUDA)).view({6, 10}).add(i));
      got.push_back(device->exchange(given.back().t()));
    }
    device->finish();
    for (std::size_t i = 0; i < got.size(); ++i) {
      BOOST_TEST(at::equal(got[i], given[i].t()));
      BOOST_TEST(got[i].data_ptr() != given[i].data_ptr());
    }
  }
  BOOST_TEST(device->exchange(at::empty({0, 3}, on_gpu())).sizes() == at::IntArrayRef({0, 3}));
}

// Their buffers of the host are in use until the copies out of them have run.
BOOST_AUTO_TEST_CASE(exchanges_of_two_lanes_go_side_by_side) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  std::vector<at::Tensor> got;
  std::vector<at::Tensor> given;
  for (int i = 0; i < 20; ++i) {
    device->use({Lane::Kind::exchange, static_cast<std::uint8_t>(i % 2)});
    given.push_back(at::full({count}, i, on_gpu()));
    got.push_back(device->exchange(given.back()));
  }
  device->finish();
  for (int i = 0; i < 20; ++i) BOOST_TEST(all_are(got[static_cast<std::size_t>(i)], i));
}

BOOST_AUTO_TEST_CASE(what_is_adopted_may_outlive_its_device) {
  at::Tensor kept;
  {
    const auto device = gpu().device(0, 1, 1);
    device->begin_step();
    kept = device->adopt(at::full({count}, 5.0, on_gpu()), device->mark());
  }
  BOOST_TEST(all_are(kept, 5.0));
  std::thread([&] { kept.reset(); }).join();
}

BOOST_AUTO_TEST_CASE(memory_is_counted_for_the_thread) {
  const auto device = gpu().device(0, 1, 1);
  const MemoryMeter meter(device->where());
  constexpr Bytes bytes = count * 4;
  at::Tensor a = at::empty({count}, on_gpu());
  BOOST_TEST(meter.held() == bytes);
  at::Tensor adopted = device->adopt(std::move(a), device->mark());
  charge_to_nobody(adopted);
  BOOST_TEST(meter.held() == 0);
  charge_to_this_thread(adopted);
  BOOST_TEST(meter.held() == bytes);
  adopted.reset();
  device->finish();
  BOOST_TEST(meter.held() == 0);
}

// A GPU with few multiprocessors has no parts.
BOOST_AUTO_TEST_CASE(ranks_may_have_multiprocessors_of_their_own) {
  const auto parted = cuda_hardware({.sm_partition = true});
  BOOST_CHECK_EXCEPTION(static_cast<void>(parted->device(0, 1000, 1)), InputError, [](const InputError& error) {
    return std::string(error.what()).find("too few for 1000 ranks") != std::string::npos;
  });
  const auto busy_time = [](Device& device) {
    Time least = std::numeric_limits<Time>::max();
    for (int i = 0; i < 5; ++i) {
      device.begin_step();
      device.use(first);
      keep_busy();
      const Mark start = device.mark();
      keep_busy();
      const Mark end = device.mark();
      device.finish();
      least = std::min(least, device.time_of(end) - device.time_of(start));
    }
    return least;
  };
  const Time whole = busy_time(*gpu().device(0, 1, 1));
  const Time half = busy_time(*parted->device(0, 2, 1));
  BOOST_TEST(half > whole * 3 / 2);
  const auto part = parted->device(1, 2, 2);
  part->begin_step();
  part->use(first);
  const at::Tensor a = at::full({count}, 3.0, on_gpu());
  const Mark ready = part->mark();
  part->use(second);
  const at::Tensor b = part->adopt(a, ready) * 2;
  part->finish();
  BOOST_TEST(all_are(b, 6.0));
}

BOOST_AUTO_TEST_CASE(a_mark_costs_little) {
  const MarkCost cost = gpu().mark_cost();
  BOOST_TEST(cost.call > 0);
  BOOST_TEST(cost.call < 50'000);
  BOOST_TEST(cost.between < 50'000);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
