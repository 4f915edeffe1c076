// Between the double of the runtime and that of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <span>

#include "tests/cuda_double/gpu.h"

namespace dualpipe::test {

// Runs `work` as what the stream does next.
void run_on(cudaStream_t stream, const char* name, std::span<const Access> accesses, const std::function<void()>& work);

}  // namespace dualpipe::test
