// Tensors that the program has dropped, but the GPU still uses: they are kept until it is done with them. Private to
// exec/cuda.
//
//     rank 0, stream a   ▐█ makes T █▌──┐ event
//     rank 1, stream b                  └▶▐█ uses T █▌──┐ fence: T may go back to the memory of stream a
//             thread    adopt(T) … drops T: defer(T)──┘  … release(): the fence is reached, T is freed
//
// LibTorch's own way, record_stream(), looks after such blocks only when memory is asked for, and keeps all of them
// until the slowest stream has come so far. That makes the peak a matter of luck.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "dualpipe/exec/cuda/event.h"
#include "dualpipe/exec/cuda/streams.h"
#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::cuda {

// May be used by any thread.
class DeferredFree {
 public:
  // `streams`: all of a device.
  explicit DeferredFree(std::vector<c10::cuda::CUDAStream> streams);

  // The stream is given work: it is busy until it is known to be idle.
  void note_busy(std::size_t stream) { busy_.fetch_or(StreamSet{1} << stream, std::memory_order_relaxed); }

  // Keeps the tensor until the busy streams, or these ones, have done the work that they have now.
  void defer(at::Tensor tensor) {
    const auto bytes = static_cast<Bytes>(tensor.storage().nbytes());
    defer(std::move(tensor), busy_.load(std::memory_order_relaxed), bytes);
  }
  void defer(at::Tensor tensor, StreamSet streams) { defer(std::move(tensor), streams, 0); }

  // How much is kept for busy streams.
  [[nodiscard]] Bytes pending_bytes() const { return pending_bytes_.load(std::memory_order_relaxed); }

  // Frees what is reached, in the order in which it was deferred.
  void release();
  // All streams are idle, and only `used` will get work before the next note_busy(): frees all.
  void release_all(StreamSet used);
  // Frees all, and from now on frees what it is given at once.
  void close();

 private:
  struct Deferred {
    at::Tensor tensor;
    Bytes counted = 0;
    std::vector<CudaEvent> fences;
  };

  void defer(at::Tensor tensor, StreamSet streams, Bytes counted);
  [[nodiscard]] std::deque<Deferred> take(bool reached_only);

  const std::vector<c10::cuda::CUDAStream> streams_;
  std::atomic<StreamSet> busy_{0};
  std::atomic<Bytes> pending_bytes_{0};
  std::mutex mutex_;
  std::deque<Deferred> deferred_;
  std::vector<CudaEvent> spare_;
  bool closed_ = false;
};

}  // namespace dualpipe::detail::cuda
