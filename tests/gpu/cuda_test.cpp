// Devices of a GPU.
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {

using detail::replay::charge_to_nobody;
using detail::replay::charge_to_this_thread;
using detail::replay::MemoryMeter;
using detail::replay::now;

namespace {

constexpr Stream first{Stream::Kind::compute, 0};
constexpr Stream second{Stream::Kind::compute, 1};
constexpr std::int64_t count = 1 << 18;

at::TensorOptions on_gpu() { return at::TensorOptions(at::kFloat).device(at::kCUDA); }

// Work for some milliseconds.
void keep_busy() {
  const std::int64_t size = gpu_is_double() ? 192 : 4096;
  at::Tensor product = at::full({size, size}, 0.5, on_gpu());
  for (int i = 0; i < 10; ++i) product = at::mm(product, product).mul_(1e-3);
}

c10::StreamId stream_in_use() {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream({at::kCUDA, 0}).id();
}

bool all_are(const at::Tensor& tensor, double value) { return at::all(tensor.eq(value)).item<bool>(); }

BOOST_AUTO_TEST_SUITE(gpu_cuda)

BOOST_AUTO_TEST_CASE(a_device_is_on_the_gpu) {
  const auto device = gpu().device(0, 1, 2);
  BOOST_TEST(device->where().is_cuda());
  BOOST_TEST(!gpu().description().empty());
  BOOST_TEST((device->used() == Stream{}));
  BOOST_TEST((at::ones({2}, on_gpu()).device() == device->where()));
}

BOOST_AUTO_TEST_CASE(events_know_times_by_the_hosts_clock) {
  const auto device = gpu().device(0, 1, 2);
  for (int step = 0; step < 3; ++step) {
    device->begin_step();
    device->use(first);
    const Time before = now();
    const Event start = device->record_event();
    keep_busy();
    const Event end = device->record_event();
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

BOOST_AUTO_TEST_CASE(events_of_another_rank_are_comparable) {
  const auto one = gpu().device(0, 2, 1);
  one->begin_step();
  one->use(first);
  keep_busy();
  const Event early = one->record_event();
  one->finish();
  const Time expected = one->time_of(early);
  const auto two = gpu().device(1, 2, 1);
  two->begin_step();  // later than the event
  two->use(first);
  two->wait(early);
  two->finish();
  BOOST_TEST(std::abs(two->time_of(early) - expected) < 100'000);
}

BOOST_AUTO_TEST_CASE(streams_run_side_by_side_and_wait_for_events) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  device->use(first);
  keep_busy();
  const at::Tensor a = at::full({count}, 3.0, on_gpu());
  const Event ready = device->record_event();
  device->use(second);
  const Event unbound = device->record_event();
  at::Tensor b = device->adopt(a, ready) + 1;
  const Event bound = device->record_event();
  device->finish();
  BOOST_TEST(device->time_of(unbound) < device->time_of(ready));
  BOOST_TEST(device->time_of(bound) >= device->time_of(ready));
  BOOST_TEST(all_are(b, 4.0));
}

// The memory of what was adopted is not used again while the other stream still reads it.
BOOST_AUTO_TEST_CASE(adopted_memory_is_kept_until_it_has_been_read) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  for (int i = 0; i < 50; ++i) {
    device->use(first);
    at::Tensor a = at::full({count}, i, on_gpu());
    const Event ready = device->record_event();
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

// The stream that is used when the device has finished goes on without another use().
BOOST_AUTO_TEST_CASE(adopted_memory_is_kept_after_the_device_has_finished) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  device->use(first);
  at::Tensor a = at::full({count}, 3.0, on_gpu());
  const Event ready = device->record_event();
  device->use(second);
  device->finish();
  at::Tensor adopted = device->adopt(std::move(a), ready);
  keep_busy();
  const at::Tensor seen = adopted.clone();
  adopted.reset();
  device->use(first);
  static_cast<void>(device->record_event());  // gives back what may be
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
    const Event sent = sender->record_event();
    // The rank's own thread has a current stream of its own.
    std::thread([&] {
      const auto receiver = hardware->device(1, 2, 1);
      receiver->begin_step();
      receiver->use(first);
      Event ready = sent;
      at::Tensor taken = receiver->take(std::move(message), ready);
      BOOST_TEST((receiver->used() == first));
      BOOST_TEST((taken.data_ptr() == data) == (hardware != copying.get()));
      BOOST_TEST((ready.handle == sent.handle) == (hardware != copying.get()));
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
  device->use({Stream::Kind::exchange, 0});
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
BOOST_AUTO_TEST_CASE(exchanges_of_two_streams_go_side_by_side) {
  const auto device = gpu().device(0, 1, 2);
  device->begin_step();
  std::vector<at::Tensor> got;
  std::vector<at::Tensor> given;
  for (int i = 0; i < 20; ++i) {
    device->use({Stream::Kind::exchange, static_cast<std::uint16_t>(i % 2)});
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
    kept = device->adopt(at::full({count}, 5.0, on_gpu()), device->record_event());
  }
  BOOST_TEST(all_are(kept, 5.0));
  std::thread([&] { kept.reset(); }).join();
}

BOOST_AUTO_TEST_CASE(memory_is_counted_for_the_thread) {
  const auto device = gpu().device(0, 1, 1);
  const MemoryMeter meter(*device);
  constexpr Bytes bytes = count * 4;
  at::Tensor a = at::empty({count}, on_gpu());
  BOOST_TEST(meter.held() == bytes);
  at::Tensor adopted = device->adopt(std::move(a), device->record_event());
  charge_to_nobody(adopted);
  BOOST_TEST(meter.held() == 0);
  charge_to_this_thread(adopted);
  BOOST_TEST(meter.held() == bytes);
  adopted.reset();
  device->finish();
  BOOST_TEST(meter.held() == 0);
}

BOOST_AUTO_TEST_CASE(memory_counts_in_units_of_the_allocator_whoever_frees_it) {
  const auto device = gpu().device(0, 1, 1);
  at::Tensor from_before = at::empty({count}, on_gpu());
  const MemoryMeter meter(*device);
  at::Tensor a = at::empty({1000}, on_gpu());
  BOOST_TEST(meter.held() == 4096);
  std::thread([&] {  // which has never had a meter
    a.reset();
    from_before.reset();
  })
      .join();
  BOOST_TEST(meter.held() == 0);
}

// torch.profiler, on the thread that is measured: which starts first, and which ends first.
BOOST_DATA_TEST_CASE(a_profiler_may_look_at_the_same_thread,
                     boost::unit_test::data::make({false, true}) * boost::unit_test::data::make({false, true}),
                     meter_starts_first, meter_ends_first) {
  namespace profiler = torch::autograd::profiler;
  using torch::profiler::impl::ActivityType;
  constexpr Bytes bytes = count * 4;
  const auto device = gpu().device(0, 1, 1);
  const auto work = [] { static_cast<void>(at::full({count}, 1.0, on_gpu()).add_(1)); };
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO,
                                                     /*report_input_shapes=*/false, /*profile_memory=*/true);
  const std::set<ActivityType> activities = {ActivityType::CPU};
  std::optional<MemoryMeter> meter;
  if (meter_starts_first) meter.emplace(*device);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  if (!meter_starts_first) meter.emplace(*device);
  work();
  BOOST_TEST(meter->peak() == bytes);
  if (meter_ends_first) meter.reset();
  work();
  Bytes seen = 0;
  const auto result = profiler::disableProfiler();
  for (const profiler::KinetoEvent& event : result->events()) {
    const bool is_memory = event.name() == "[memory]" && event.deviceType() == at::kCUDA;
    if (is_memory && event.nBytes() > 0) seen += event.nBytes();
  }
  BOOST_TEST(seen == 2 * bytes);
  if (meter_ends_first) return;
  work();
  BOOST_TEST(meter->peak() == bytes);
}

// More than LibTorch has streams, and than a byte can number: some share one.
BOOST_DATA_TEST_CASE(a_rank_may_have_any_number_of_stages,
                     boost::unit_test::data::make({1, 15, 16, 31, 32, 33, 300}) *
                         boost::unit_test::data::make({false, true}),
                     stages, sm_partition) {
  const auto hardware = cuda_hardware({.sm_partition = sm_partition});
  const auto device = hardware->device(0, 1, stages);
  device->begin_step();
  at::Tensor tensor = at::full({count / 64}, 0.0, on_gpu());
  for (int stage = 0; stage < stages; ++stage) {
    for (const Stream::Kind kind : {Stream::Kind::exchange, Stream::Kind::compute}) {
      const Event ready = device->record_event();
      device->use({kind, static_cast<std::uint16_t>(stage)});
      at::Tensor adopted = device->adopt(std::move(tensor), ready);
      tensor = adopted + 1;
      adopted.reset();
    }
  }
  // Side by side, as far as there are streams.
  const Event ready = device->record_event();
  std::vector<at::Tensor> parts;
  std::vector<Event> ends;
  for (int stage = 0; stage < stages; ++stage) {
    device->use({Stream::Kind::compute, static_cast<std::uint16_t>(stage)});
    parts.push_back(device->adopt(tensor, ready) + stage);
    ends.push_back(device->record_event());
  }
  device->use({Stream::Kind::message, 1});
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = device->adopt(std::move(parts[i]), ends[i]) + 1;
  device->finish();
  for (int stage = 0; stage < stages; ++stage) {
    BOOST_TEST(all_are(parts[static_cast<std::size_t>(stage)], 2 * stages + stage + 1));
  }
  const auto refuses = [&](Stream stream) {
    try {
      device->use(stream);
    } catch (const InputError&) {
      return device->used() == Stream{Stream::Kind::message, 1};
    }
    return false;
  };
  BOOST_TEST(refuses({Stream::Kind::compute, static_cast<std::uint16_t>(stages)}));
  BOOST_TEST(refuses({Stream::Kind::exchange, static_cast<std::uint16_t>(stages)}));
  BOOST_TEST(refuses({Stream::Kind::message, 2}));
}

// What waits on a stream of messages for another rank must not hold up what that one waits for.
BOOST_AUTO_TEST_CASE(streams_of_messages_share_no_cuda_stream) {
  for (int i = 0; i < 40; ++i) {  // as streams come round at another place each time
    const auto device = gpu().device(0, 1, 31 + i);
    std::set<c10::StreamId> of_messages;
    for (const int direction : {0, 1}) {
      device->use({Stream::Kind::message, static_cast<std::uint16_t>(direction)});
      of_messages.insert(stream_in_use());
    }
    BOOST_TEST(of_messages.size() == 2U);
    for (int stage = 0; stage < 31; ++stage) {
      for (const Stream::Kind kind : {Stream::Kind::compute, Stream::Kind::exchange}) {
        device->use({kind, static_cast<std::uint16_t>(stage)});
        BOOST_TEST(!of_messages.contains(stream_in_use()));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(a_device_is_for_a_rank_that_there_is) {
  BOOST_CHECK_THROW(static_cast<void>(gpu().device(2, 2, 1)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(gpu().device(-1, 2, 1)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(gpu().device(0, 1, 0)), InputError);
  const auto device = gpu().device(0, 1, 1);
  BOOST_CHECK_THROW(static_cast<void>(device->exchange(at::ones({3}))), InputError);
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
      const Event start = device.record_event();
      keep_busy();
      const Event end = device.record_event();
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
  const Event ready = part->record_event();
  part->use(second);
  const at::Tensor b = part->adopt(a, ready) * 2;
  part->finish();
  BOOST_TEST(all_are(b, 6.0));
}

BOOST_AUTO_TEST_CASE(an_event_costs_little) {
  const EventCost cost = gpu().event_cost();
  BOOST_TEST(cost.call > 0);
  BOOST_TEST(cost.call < 50'000);
  BOOST_TEST(cost.between < 50'000);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
