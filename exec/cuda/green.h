// Green contexts of CUDA's driver: each has some of a GPU's multiprocessors to itself. Private to exec/cuda.
//
//     132 multiprocessors, 4 ranks:   ▐ 32 ▌▐ 32 ▌▐ 32 ▌▐ 32 ▌▐ 4 idle ▌
//
// A stream that was made in a green context runs on its multiprocessors, whichever context is current; so threads,
// memory, events and libraries stay in the GPU's primary context, to which green contexts belong. (CUDA Driver API,
// "Green Contexts"; a partition of Hopper has at least 8 multiprocessors, and a multiple of 8.)
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <vector>

namespace dualpipe::detail::cuda {

// So many parts of equal size, as large as they can be. Throws InputError where the GPU has too few multiprocessors for
// so many parts, or its driver knows no green contexts.
[[nodiscard]] std::vector<CUgreenCtx> green_contexts(int device, int parts);

// A stream of the context, which, like the context, is never destroyed. Lower numbers are a higher priority.
[[nodiscard]] cudaStream_t stream_in(CUgreenCtx context, int priority);

}  // namespace dualpipe::detail::cuda
