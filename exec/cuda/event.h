// CUDA events: points in the work of a stream. Private to exec/cuda.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <utility>

#include "dualpipe/exec/cuda/check.h"

namespace dualpipe::detail::cuda {

// Whether the GPU has reached the event.
[[nodiscard]] inline bool is_done(cudaEvent_t event) {
  const cudaError_t status = cudaEventQuery(event);
  if (status == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());  // no error, but kept like one
    return false;
  }
  check(status, "asking for an event");
  return true;
}

// An event of the GPU that is current on the thread that makes it.
class CudaEvent {
 public:
  enum class Knows : unsigned { time = cudaEventDefault, order = cudaEventDisableTiming };

  explicit CudaEvent(Knows what) { check(cudaEventCreateWithFlags(&event_, static_cast<unsigned>(what)), "an event"); }
  ~CudaEvent() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));  // at the end of the process CUDA may be gone
  }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  [[nodiscard]] cudaEvent_t get() const { return event_; }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void synchronize() const { check(cudaEventSynchronize(event_), "waiting for an event"); }
  [[nodiscard]] bool is_done() const { return detail::cuda::is_done(event_); }

 private:
  cudaEvent_t event_ = nullptr;
};

// Events that all become free together. To make one takes much longer than to use it again.
class CudaEventPool {
 public:
  [[nodiscard]] CudaEvent& next() {
    if (used_ == events_.size()) events_.emplace_back(CudaEvent::Knows::time);
    return events_[used_++];
  }
  void free_all() { used_ = 0; }

 private:
  std::deque<CudaEvent> events_;  // which do not move
  std::size_t used_ = 0;
};

}  // namespace dualpipe::detail::cuda
