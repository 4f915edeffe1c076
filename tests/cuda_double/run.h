// What the doubles of the kernels and of NCCL need of that of the runtime: Gpu::run() and defer().
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <vector>

#include "tests/cuda_double/gpu.h"

namespace dualpipe::test {

void run_on(cudaStream_t stream, const char* name, std::span<const Access> accesses, const Work& work);
std::shared_ptr<Deferred> defer_on(cudaStream_t stream, const char* name, std::vector<Access> accesses, Readiness ready,
                                   Work work);

}  // namespace dualpipe::test
