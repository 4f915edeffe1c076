// Buffers in page-locked memory of the host, which the copy engines of a GPU reach by themselves. Private to exec/cuda.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <memory>
#include <vector>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/exec/cuda/event.h"

namespace dualpipe::detail::cuda {

// Used by one thread.
class PinnedBuffers {
 public:
  class Buffer {
   public:
    explicit Buffer(std::size_t bytes) : bytes_(bytes) {
      check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "memory of the host for an exchange");
    }
    ~Buffer() { static_cast<void>(cudaFreeHost(data_)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    [[nodiscard]] void* data() const { return data_; }
    [[nodiscard]] std::size_t bytes() const { return bytes_; }
    // The buffer is in use until the stream has done the work that it has now.
    void hold_until(cudaStream_t stream) { free_at_.record(stream); }
    // Also of one that was never used.
    [[nodiscard]] bool is_free() const { return free_at_.is_done(); }

   private:
    void* data_ = nullptr;
    std::size_t bytes_;
    CudaEvent free_at_{CudaEvent::Knows::order};
  };

  // A free one of at least so many bytes. A new one is made only for a larger size, or where more exchanges are under
  // way than ever before: that stops the host, and no longer happens after the first step.
  [[nodiscard]] Buffer& take(std::size_t bytes) {
    const auto found =
        std::ranges::find_if(buffers_, [&](const auto& each) { return each->bytes() >= bytes && each->is_free(); });
    if (found != buffers_.end()) return **found;
    return *buffers_.emplace_back(std::make_unique<Buffer>(std::bit_ceil(bytes)));
  }

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace dualpipe::detail::cuda
