#include "dualpipe/exec/cuda/cuda_device.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/exec/cuda/deferred_free.h"
#include "dualpipe/exec/cuda/event.h"
#include "dualpipe/exec/cuda/pinned.h"
#include "dualpipe/exec/device/alias.h"
#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::cuda {

using detail::device::alias_with_release;
using detail::replay::now;

namespace {

constexpr double nanoseconds_per_millisecond = 1e6;

cudaEvent_t handle_of(const Event& event) {
  return static_cast<cudaEvent_t>(const_cast<void*>(event.handle));  // as it was made, in record_event()
}

Time elapsed(cudaEvent_t from, cudaEvent_t to) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, from, to), "the time of an event");
  return static_cast<Time>(static_cast<double>(milliseconds) * nanoseconds_per_millisecond);
}

// An event whose time by the host's clock is known. CUDA tells times between events only, as floats in milliseconds:
// after 10 s good to 1 us, so that every step needs a base of its own.
class ClockBase {
 public:
  // The stream must be idle. The event's time lies between two of the host; the closest two of several tries count.
  void take(cudaStream_t stream) {
    width_ = std::numeric_limits<Time>::max();
    for (CudaEvent& each : tries_) {
      const Time before = now();
      each.record(stream);
      each.synchronize();
      const Time after = now();
      if (after - before >= width_) continue;
      width_ = after - before;
      event_ = &each;
      time_ = before + width_ / 2;
    }
  }
  [[nodiscard]] Time time_of(cudaEvent_t event) const { return time_ + elapsed(event_->get(), event); }

 private:
  static std::array<CudaEvent, 4> make_tries() {
    constexpr auto knows = CudaEvent::Knows::time;
    return {CudaEvent(knows), CudaEvent(knows), CudaEvent(knows), CudaEvent(knows)};
  }

  std::array<CudaEvent, 4> tries_ = make_tries();
  const CudaEvent* event_ = &tries_.front();
  Time time_ = 0;
  Time width_ = 0;
};

// What the thread had before it used the device.
class ThreadState {
 public:
  explicit ThreadState(c10::DeviceIndex gpu)
      : device_(c10::cuda::current_device()), stream_(c10::cuda::getCurrentCUDAStream(gpu)) {
    c10::cuda::set_device(gpu);
  }
  void restore() const {
    if (std::this_thread::get_id() != thread_) return;
    c10::cuda::setCurrentCUDAStream(stream_);
    c10::cuda::set_device(device_);
  }

 private:
  std::thread::id thread_ = std::this_thread::get_id();
  c10::DeviceIndex device_;
  c10::cuda::CUDAStream stream_;
};

// What the allocator takes for a block of which so much was asked for, which is all that it tells.
Bytes block_bytes(std::size_t asked) {
  constexpr std::size_t unit = 512;
  return static_cast<Bytes>((asked + unit - 1) / unit * unit);
}

// Once for all devices: LibTorch has no way to take a callback back.
void attach(MemoryListener& listener) {
  using c10::CachingDeviceAllocator::TraceEntry;
  static const bool attached = [&listener] {
    const auto tell = [&listener](const TraceEntry& entry) {
      const auto* const data = reinterpret_cast<const void*>(entry.addr_);
      if (entry.action_ == TraceEntry::ALLOC) listener.allocated(data, block_bytes(entry.size_), at::kCUDA);
      if (entry.action_ == TraceEntry::FREE_REQUESTED) listener.freed(data);
    };
    auto& allocator = *c10::cuda::CUDACachingAllocator::get();
    try {
      allocator.attachAllocatorTraceTracker(tell);
    } catch (const c10::Error&) {
      throw InputError(
          fmt::format("cuda: memory cannot be measured: LibTorch's allocator is {}, which does not tell of its blocks; "
                      "leave its `backend` out of PYTORCH_CUDA_ALLOC_CONF, or do not measure memory",
                      allocator.name()));
    }
    return true;
  }();
  static_cast<void>(attached);
}

class CudaDevice final : public Device {
 public:
  CudaDevice(c10::DeviceIndex gpu, RankStreams streams, bool copies)
      : before_(gpu),
        gpu_(gpu),
        streams_(std::move(streams)),
        copies_(copies),
        deferred_free_(std::make_shared<DeferredFree>(streams_.all)) {
    use({});
    base_.take(current());
  }

  ~CudaDevice() override {
    try {
      finish();
    } catch (const std::exception&) {  // it has failed, and its rank has heard of it
    }
    deferred_free_->close();
    try {
      before_.restore();
    } catch (const std::exception&) {  // the same
    }
  }

  [[nodiscard]] at::Device where() const override { return {at::kCUDA, gpu_}; }

  void begin_step() override {
    finish();
    events_.free_all();
    base_.take(current());
  }

  void use(Stream stream) override {
    const std::size_t index = streams_.index_of(stream);
    used_ = stream;
    deferred_free_->note_busy(index);
    c10::cuda::setCurrentCUDAStream(streams_.all[index]);
  }
  [[nodiscard]] Stream used() const override { return used_; }

  [[nodiscard]] Event record_event() override {
    deferred_free_->release();
    CudaEvent& event = events_.next();
    event.record(current());
    return {now(), event.get()};
  }

  [[nodiscard]] bool is_done(const Event& event) const override {
    return event.handle == nullptr || detail::cuda::is_done(handle_of(event));
  }

  void wait(const Event& event) override {
    if (event.handle == nullptr) return;
    check(cudaStreamWaitEvent(current(), handle_of(event), 0), "making a stream wait");
  }

  void await(const Event& event) override {
    if (event.handle != nullptr) check(cudaEventSynchronize(handle_of(event)), "waiting for an event");
  }

  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override {
    wait(ready);
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    return alias_with_release(std::move(tensor), [deferred_free = deferred_free_](at::Tensor ended) {
      deferred_free->defer(std::move(ended));
    });
  }

  // The copy is in memory of the message stream, not of the one that receives it: there it would have to wait for what
  // that stream does meanwhile, and which may have used the memory before.
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override {
    copy_begun_.reset();
    if (!copies_ || !tensor.defined() || !tensor.is_cuda()) return adopt(std::move(tensor), ready);
    constexpr Stream message{Stream::Kind::message};
    const Stream receiver = used_;
    use(message);
    wait(ready);
    copy_begun_ = record_event();
    at::Tensor copy = tensor.detach().clone();
    ready = record_event();
    deferred_free_->defer(std::move(tensor), StreamSet{1} << streams_.index_of(message));
    use(receiver);
    return adopt(std::move(copy), ready);
  }

  [[nodiscard]] std::optional<Event> copy_begun() const override { return copy_begun_; }

  // Through memory of the host, by the copy engines: on one GPU there is no link between the parts of a stage, so this
  // stands for it. It takes time of the bus, and leaves the multiprocessors free, as a transfer between GPUs does.
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override {
    const c10::NoGradGuard no_grad;
    const at::Tensor source = tensor.contiguous();
    at::Tensor result = at::empty_like(source);
    if (source.nbytes() == 0) return result;
    if (!source.is_cuda()) {
      throw InputError(
          "a tensor of the host cannot be exchanged on a GPU; a stage has its tensors on its rank's device");
    }
    PinnedBuffers::Buffer& buffer = pinned_.take(source.nbytes());
    const cudaStream_t stream = current();
    check(cudaMemcpyAsync(buffer.data(), source.const_data_ptr(), source.nbytes(), cudaMemcpyDeviceToHost, stream),
          "a copy to the host");
    check(cudaMemcpyAsync(result.mutable_data_ptr(), buffer.data(), source.nbytes(), cudaMemcpyHostToDevice, stream),
          "a copy from the host");
    buffer.hold_until(stream);
    return result;
  }

  [[nodiscard]] Bytes pending_bytes() const override { return deferred_free_->pending_bytes(); }

  void tell_of_memory(MemoryListener& listener) override { attach(listener); }

  void finish() override {
    for (const c10::cuda::CUDAStream& each : streams_.all) {
      check(cudaStreamSynchronize(each.stream()), "waiting for the GPU");
    }
    deferred_free_->release_all(StreamSet{1} << streams_.index_of(used_));
  }

  [[nodiscard]] Time time_of(const Event& event) const override {
    return event.handle == nullptr ? event.time : base_.time_of(handle_of(event));
  }

 private:
  [[nodiscard]] cudaStream_t current() const { return streams_.all[streams_.index_of(used_)].stream(); }

  const ThreadState before_;
  const c10::DeviceIndex gpu_;
  const RankStreams streams_;
  const bool copies_;
  const std::shared_ptr<DeferredFree> deferred_free_;  // outlives this where tensors do
  CudaEventPool events_;
  std::optional<Event> copy_begun_;  // of the last one that was taken
  ClockBase base_;
  PinnedBuffers pinned_;
  Stream used_;
};

}  // namespace

std::unique_ptr<Device> cuda_device(c10::DeviceIndex gpu, RankStreams streams, bool copies) {
  return std::make_unique<CudaDevice>(gpu, std::move(streams), copies);
}

EventCost measure_event_cost(c10::cuda::CUDAStream stream) {
  constexpr std::size_t count = 1000;
  CudaEventPool pool;
  std::vector<cudaEvent_t> events;
  for (std::size_t i = 0; i < count; ++i) events.push_back(pool.next().get());  // to make them is not measured
  pool.free_all();
  check(cudaStreamSynchronize(stream.stream()), "waiting for the GPU");
  const Time before = now();
  for (std::size_t i = 0; i < count; ++i) pool.next().record(stream.stream());
  const Time after = now();
  check(cudaStreamSynchronize(stream.stream()), "waiting for the GPU");
  Time between = std::numeric_limits<Time>::max();
  for (std::size_t i = 1; i < count; ++i) between = std::min(between, elapsed(events[i - 1], events[i]));
  return {(after - before) / static_cast<Time>(count), between};
}

}  // namespace dualpipe::detail::cuda
