// The streams of one rank. Private to exec/cuda.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <cuda.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe {

// A compute lane for each stage; the lanes for exchanges, as many, and the two for messages have a higher priority:
// what others wait for goes first. Streams stay as long as the process, since LibTorch's allocator keeps blocks for
// each.
struct Lanes {
  std::vector<c10::cuda::CUDAStream> streams;
  std::size_t stages = 0;

  // The place in `streams`.
  [[nodiscard]] std::size_t index_of(Lane lane) const;
};

// From LibTorch's pools, or in a green context.
[[nodiscard]] Lanes make_lanes(c10::DeviceIndex device, int stages, std::optional<CUgreenCtx> context);

}  // namespace dualpipe
