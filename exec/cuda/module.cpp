#include "dualpipe/exec/cuda/module.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAFunctions.h>
#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dualpipe/exec/cuda/check.h"
#include "dualpipe/exec/cuda/cuda_device.h"
#include "dualpipe/exec/cuda/green.h"
#include "dualpipe/exec/cuda/nccl.h"
#include "dualpipe/exec/cuda/streams.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::cuda {
namespace {

int gpu_count() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    throw InputError(
        "cuda: there is no NVIDIA driver (libcuda.so.1): install it, or in a container start that with the GPUs of the "
        "host (docker run --gpus all)");
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  static_cast<void>(cudaGetLastError());
  if (status == cudaErrorInsufficientDriver) {
    throw InputError(
        fmt::format("cuda: the NVIDIA driver is for CUDA {}.{}, and LibTorch needs that for CUDA {}.{} or later",
                    driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10));
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    throw InputError("cuda: there is no GPU: nvidia-smi -L must list one, and CUDA_VISIBLE_DEVICES not hide it");
  }
  check(status, "counting the GPUs");
  return count;
}

// A launcher may give all GPUs of the host to each process, or each process one.
int chosen_gpu(int count, const std::optional<LocalProcess>& local) {
  if (!local || count == 1) return 0;
  if (local->number < count) return local->number;
  throw InputError(fmt::format("cuda: {} is {}, but the host has {} GPUs; start at most one process for each",
                               local->variable, local->number, count));
}

class Cuda final : public Hardware {
 public:
  explicit Cuda(const CudaOptions& options) : options_(options), gpu_(static_cast<c10::DeviceIndex>(gpu(options))) {
    c10::cuda::set_device(gpu_);
    at::globalContext().lazyInitDevice(at::kCUDA);
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, gpu_), "the properties of the GPU");
    name_ = fmt::format("{} ({} multiprocessors)", properties.name, properties.multiProcessorCount);
  }

  [[nodiscard]] std::string description() const override { return name_; }

  [[nodiscard]] std::unique_ptr<Device> device(int index, int ranks, int stages) override {
    if (index < 0 || index >= ranks || stages < 1) {
      throw InputError(
          fmt::format("cuda: rank {} of {} of this process, with {} stages: the number must be less than "
                      "that of the ranks, and a rank has at least one stage",
                      index, ranks, stages));
    }
    return cuda_device(gpu_, streams_of(index, ranks, stages), options_.copy);
  }

  [[nodiscard]] EventCost event_cost() override {
    c10::cuda::set_device(gpu_);
    return measure_event_cost(streams_of(0, 1, 1).all.front());
  }

 private:
  static int gpu(const CudaOptions& options) {
    // As many queues as there are streams, or streams wait for each other; read when the driver starts.
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    return chosen_gpu(gpu_count(), options.local);
  }

  // Made once: streams are never destroyed.
  [[nodiscard]] RankStreams streams_of(int index, int ranks, int stages) {
    const std::lock_guard lock(mutex_);
    const auto key = std::tuple(index, ranks, stages);
    const auto found = streams_.find(key);
    if (found != streams_.end()) return found->second;
    return streams_.emplace(key, make_streams(gpu_, stages, context_of(index, ranks))).first->second;
  }
  [[nodiscard]] std::optional<CUgreenCtx> context_of(int index, int ranks) {
    if (!options_.sm_partition) return std::nullopt;
    std::vector<CUgreenCtx>& contexts = contexts_[ranks];
    if (contexts.empty()) contexts = green_contexts(gpu_, ranks);
    return contexts[static_cast<std::size_t>(index)];
  }

  const CudaOptions options_;
  const c10::DeviceIndex gpu_;
  std::string name_;
  std::mutex mutex_;
  std::map<std::tuple<int, int, int>, RankStreams> streams_;  // by index, ranks and stages
  std::map<int, std::vector<CUgreenCtx>> contexts_;           // by ranks
};

std::unique_ptr<Hardware> make_hardware(const CudaOptions& options) { return std::make_unique<Cuda>(options); }

}  // namespace

extern "C" const CudaModule* dualpipe_cuda_module() {
#ifdef DUALPIPE_HAS_NCCL
  static const CudaModule module{cuda_module_version, &make_hardware, &make_nccl};
#else
  static const CudaModule module{cuda_module_version, &make_hardware, nullptr};
#endif
  return &module;
}

}  // namespace dualpipe::detail::cuda
