#include "dualpipe/exec/cuda/green.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::cuda {
namespace {

// Of the driver, which is there only on machines with a GPU, and so cannot be linked.
template <typename Function>
Function* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion(name, &function, CUDA_VERSION, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw InputError(
        fmt::format("--sm-partition: the CUDA driver is too old: it has no {}; CUDA {}.{} or later is needed", name,
                    CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10));
  }
  return reinterpret_cast<Function*>(function);
}

struct Driver {
  decltype(&cuGetErrorString) error_string = driver_function<decltype(cuGetErrorString)>("cuGetErrorString");
  decltype(&cuDeviceGet) device_get = driver_function<decltype(cuDeviceGet)>("cuDeviceGet");
  decltype(&cuDeviceGetDevResource) resource =
      driver_function<decltype(cuDeviceGetDevResource)>("cuDeviceGetDevResource");
  decltype(&cuDevSmResourceSplitByCount) split =
      driver_function<decltype(cuDevSmResourceSplitByCount)>("cuDevSmResourceSplitByCount");
  decltype(&cuDevResourceGenerateDesc) describe =
      driver_function<decltype(cuDevResourceGenerateDesc)>("cuDevResourceGenerateDesc");
  decltype(&cuGreenCtxCreate) create = driver_function<decltype(cuGreenCtxCreate)>("cuGreenCtxCreate");
  decltype(&cuGreenCtxStreamCreate) create_stream =
      driver_function<decltype(cuGreenCtxStreamCreate)>("cuGreenCtxStreamCreate");

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* text = nullptr;
    static_cast<void>(error_string(status, &text));
    throw std::runtime_error(
        fmt::format("CUDA: {}: {} ({})", what, text == nullptr ? "unknown error" : text, static_cast<int>(status)));
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

// The most that each of the parts can have.
unsigned part_size(const CUdevSmResource& all, int parts) {
  const unsigned unit = std::max(all.smCoscheduledAlignment, 1U);
  const unsigned share = all.smCount / static_cast<unsigned>(parts) / unit * unit;
  const unsigned least = std::max(all.minSmPartitionSize, 1U);
  if (share >= least) return share;
  throw InputError(
      fmt::format("--sm-partition: the GPU has {} multiprocessors, too few for {} ranks: a part has at least {}, and a "
                  "multiple of {}; use at most {} ranks, or leave --sm-partition out",
                  all.smCount, parts, least, unit, all.smCount / ((least + unit - 1) / unit * unit)));
}

}  // namespace

std::vector<CUgreenCtx> green_contexts(int device, int parts) {
  check(cudaSetDevice(device), "choosing the GPU");  // makes its primary context, which the green ones need
  CUdevice handle{};
  driver().check(driver().device_get(&handle, device), "cuDeviceGet");
  CUdevResource all{};
  driver().check(driver().resource(handle, &all, CU_DEV_RESOURCE_TYPE_SM), "cuDeviceGetDevResource");
  const unsigned size = part_size(all.sm, parts);

  std::vector<CUdevResource> resources(static_cast<std::size_t>(parts));
  auto count = static_cast<unsigned>(parts);
  CUdevResource rest{};
  driver().check(driver().split(resources.data(), &count, &all, &rest, 0, size), "cuDevSmResourceSplitByCount");
  if (count < static_cast<unsigned>(parts)) {
    throw InputError(
        fmt::format("--sm-partition: of {} multiprocessors the driver makes only {} parts of {}; use fewer "
                    "ranks, or leave --sm-partition out",
                    all.sm.smCount, count, size));
  }
  std::vector<CUgreenCtx> contexts;
  for (CUdevResource& each : resources) {
    CUdevResourceDesc description{};
    driver().check(driver().describe(&description, &each, 1), "cuDevResourceGenerateDesc");
    driver().check(driver().create(&contexts.emplace_back(), description, handle, CU_GREEN_CTX_DEFAULT_STREAM),
                   "cuGreenCtxCreate");
  }
  return contexts;
}

cudaStream_t stream_in(CUgreenCtx context, int priority) {
  CUstream stream{};
  driver().check(driver().create_stream(&stream, context, CU_STREAM_NON_BLOCKING, priority), "cuGreenCtxStreamCreate");
  return stream;
}

}  // namespace dualpipe::detail::cuda
