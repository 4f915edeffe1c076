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

// A compute lane for each stage; the lanes for exchanges, as many, and the two for messages have a higher priority:
// what others wait for goes first. Streams stay as long as the process, since LibTorch's allocator keeps blocks for
// each.
//
// There may be any number of stages, but only so many streams: LibTorch's pools have 32 of each priority, which they
// hand out in turn. With more stages than streams, lanes share one: every so many stages the same. What is put on two
// lanes of one stream runs in the order in which it was put there, as if the second had waited for the first. Only the
// lanes of messages share with no other: what waits there for another rank may not hold up what that one waits for.
struct Lanes {
  static constexpr std::size_t message_lanes = 2;
  static constexpr std::size_t streams_per_kind = 31;  // of compute lanes, and of exchange lanes
  static_assert(2 * streams_per_kind + message_lanes == 64, "a StreamSet has a bit for each");

  std::vector<c10::cuda::CUDAStream> streams;  // of compute lanes, of exchange lanes, of messages
  std::size_t stages = 0;

  // The place of a lane in `streams`. Throws InputError where the rank has no such lane.
  [[nodiscard]] std::size_t index_of(Lane lane) const;
};

// From LibTorch's pools, or in a green context. `stages`: at least 1.
[[nodiscard]] Lanes make_lanes(c10::DeviceIndex device, int stages, std::optional<CUgreenCtx> context);

}  // namespace dualpipe::detail::cuda
