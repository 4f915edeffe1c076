// The streams of one rank. Private to exec/cuda.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe::detail::cuda {

using StreamSet = std::uint64_t;  // bit i: stream i of a rank

// The CUDA streams that stand for the streams of a Device: one to compute for each stage; as many for exchanges, and
// two for messages, which have a higher priority, since others wait for what is on them. They stay as long as the
// process, as LibTorch's allocator keeps blocks for each.
//
// There may be any number of stages, but LibTorch's pools have only 32 CUDA streams of each priority, which they hand
// out in turn. Where there are more stages, every 31st has the same CUDA stream: what is put on both runs in the order
// in which it was put there, as if the second had waited for the first. Those for messages are nobody else's: what
// waits there for another rank must not hold up what that rank waits for.
struct RankStreams {
  static constexpr std::size_t message_streams = 2;
  static constexpr std::size_t streams_per_kind = 31;  // of compute streams, and of exchange streams
  static_assert(2 * streams_per_kind + message_streams == 64, "a StreamSet has a bit for each");

  std::vector<c10::cuda::CUDAStream> all;  // for compute, for exchanges, for messages
  std::size_t stages = 0;

  // The place of a stream in `all`. Throws InputError where the rank has no such stream.
  [[nodiscard]] std::size_t index_of(Stream stream) const;
};

// From LibTorch's pools, or in a green context. `stages`: at least 1.
[[nodiscard]] RankStreams make_streams(c10::DeviceIndex device, int stages, std::optional<CUgreenCtx> context);

}  // namespace dualpipe::detail::cuda
