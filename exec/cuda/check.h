// Errors of CUDA become exceptions. Private to exec/cuda.
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <stdexcept>

namespace dualpipe::detail::cuda {

// `what`: the call, or what it was for. An error of an earlier, asynchronous piece of work may come up in any call.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // else the next check of a kernel's launch finds it again
  throw std::runtime_error(
      fmt::format("CUDA: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

}  // namespace dualpipe::detail::cuda
