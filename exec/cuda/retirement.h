// Tensors that nobody uses any more, but the GPU still does: kept until it has come so far. Private to exec/cuda.
//
//     rank 0, lane a   ▐█ makes T █▌──┐ mark
//     rank 1, lane b                  └▶▐█ uses T █▌──┐ fence: T may go back to the memory of lane a
//            thread    adopt(T) … drops T: park(T)────┘  … release(): the fence is reached, T is freed
//
// LibTorch's own way, record_stream(), looks after such blocks only when memory is asked for, and keeps all of them for
// as long as the slowest stream; which makes the peak a matter of luck.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "dualpipe/exec/cuda/event.h"
#include "dualpipe/exec/cuda/lanes.h"
#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::cuda {

// May be used by any thread.
class Retirement {
 public:
  // `streams`: all of a device.
  explicit Retirement(std::vector<c10::cuda::CUDAStream> streams);

  // Streams that have been given work since they were last known to be idle.
  void note_busy(std::size_t stream) { busy_.fetch_or(StreamSet{1} << stream, std::memory_order_relaxed); }

  // Keeps it until the busy streams, or these ones, have done what they have now.
  void park(at::Tensor tensor) {
    const auto bytes = static_cast<Bytes>(tensor.storage().nbytes());
    park(std::move(tensor), busy_.load(std::memory_order_relaxed), bytes);
  }
  void park(at::Tensor tensor, StreamSet streams) { park(std::move(tensor), streams, 0); }

  // How much is kept for busy streams.
  [[nodiscard]] Bytes kept() const { return kept_.load(std::memory_order_relaxed); }

  // Frees what is reached, in the order in which it was parked.
  void release();
  // All streams are idle, and only `used` will get work before the next note_busy(): frees all.
  void release_all(StreamSet used);
  // The same; from now on nothing is kept any more.
  void close();

 private:
  struct Parked {
    at::Tensor tensor;
    Bytes counted = 0;
    std::vector<Event> fences;
  };

  void park(at::Tensor tensor, StreamSet streams, Bytes counted);
  [[nodiscard]] std::deque<Parked> take(bool reached_only);

  const std::vector<c10::cuda::CUDAStream> streams_;
  std::atomic<StreamSet> busy_{0};
  std::atomic<Bytes> kept_{0};
  std::mutex mutex_;
  std::deque<Parked> parked_;
  std::vector<Event> spare_;
  bool closed_ = false;
};

}  // namespace dualpipe::detail::cuda
