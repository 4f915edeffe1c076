#include "dualpipe/exec/cuda/lanes.h"

#include <cassert>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/exec/cuda/green.h"

namespace dualpipe {
namespace {

constexpr std::size_t message_lanes = 2;

}  // namespace

std::size_t Lanes::index_of(Lane lane) const {
  assert(lane.index < (lane.kind == Lane::Kind::message ? message_lanes : stages));
  if (lane.kind == Lane::Kind::message) return 2 * stages + lane.index;
  return lane.kind == Lane::Kind::compute ? lane.index : stages + lane.index;
}

Lanes make_lanes(c10::DeviceIndex device, int stages, std::optional<CUgreenCtx> context) {
  int lowest = 0;
  int highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "the priorities of streams");
  const auto make = [&](bool is_urgent) {
    if (!context) return c10::cuda::getStreamFromPool(is_urgent, device);
    return c10::cuda::getStreamFromExternal(stream_in(*context, is_urgent ? highest : 0), device);
  };
  Lanes lanes;
  lanes.stages = static_cast<std::size_t>(stages);
  const std::size_t urgent = lanes.stages + message_lanes;
  for (std::size_t i = 0; i < lanes.stages; ++i) lanes.streams.push_back(make(false));
  for (std::size_t i = 0; i < urgent; ++i) lanes.streams.push_back(make(true));
  return lanes;
}

}  // namespace dualpipe
