#include "dualpipe/exec/cuda/streams.h"

#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/exec/cuda/green.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::cuda {
namespace {

std::size_t streams_of_kind(std::size_t stages) { return std::min(stages, RankStreams::streams_per_kind); }

}  // namespace

std::size_t RankStreams::index_of(Stream stream) const {
  const bool is_message = stream.kind == Stream::Kind::message;
  if (stream.index >= (is_message ? message_streams : stages)) {
    throw InputError(
        fmt::format("the device of a rank has a stream of each kind for {} stages, and {} for messages, but "
                    "none of number {}; make it for more stages (Hardware::device())",
                    stages, message_streams, stream.index));
  }
  const std::size_t count = streams_of_kind(stages);
  if (is_message) return 2 * count + stream.index;
  const std::size_t index = stream.index % count;
  return stream.kind == Stream::Kind::compute ? index : count + index;
}

RankStreams make_streams(c10::DeviceIndex device, int stages, std::optional<CUgreenCtx> context) {
  int lowest = 0;
  int highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "the priorities of streams");
  const auto make = [&](bool is_urgent) {
    if (!context) return c10::cuda::getStreamFromPool(is_urgent, device);
    return c10::cuda::getStreamFromExternal(stream_in(*context, is_urgent ? highest : 0), device);
  };
  // A pool that has been round gives a stream that it gave before.
  std::vector<c10::cuda::CUDAStream> messages;
  const auto make_urgent = [&] {
    while (true) {
      const c10::cuda::CUDAStream stream = make(true);
      if (std::ranges::find(messages, stream) == messages.end()) return stream;
    }
  };
  for (std::size_t i = 0; i < RankStreams::message_streams; ++i) messages.push_back(make_urgent());

  RankStreams streams;
  streams.stages = static_cast<std::size_t>(stages);
  const std::size_t count = streams_of_kind(streams.stages);
  for (std::size_t i = 0; i < count; ++i) streams.all.push_back(make(false));
  for (std::size_t i = 0; i < count; ++i) streams.all.push_back(make_urgent());
  streams.all.insert(streams.all.end(), messages.begin(), messages.end());
  return streams;
}

}  // namespace dualpipe::detail::cuda
