// What one rank has of a GPU. Private to exec/cuda.
#pragma once

#include <memory>

#include "dualpipe/exec/cuda/streams.h"
#include "dualpipe/exec/device/device.h"

namespace dualpipe::detail::cuda {

// To be made, used and destroyed by the thread of the rank. `copies`: whether messages are copied (CudaOptions::copy).
[[nodiscard]] std::unique_ptr<Device> cuda_device(c10::DeviceIndex gpu, RankStreams streams, bool copies);

// What events cost in an idle stream.
[[nodiscard]] EventCost measure_event_cost(c10::cuda::CUDAStream stream);

}  // namespace dualpipe::detail::cuda
