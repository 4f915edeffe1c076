// What the CUDA module, libdualpipe_cuda.so, and the library that loads it at run time agree on. Both are of one build:
// of one version of the headers of exec/, one compiler, and one LibTorch.
//
//     dualpipe-run ── c10, torch_cpu                       starts on any machine
//          │ dlopen (exec/device/cuda.cpp)
//          ▼
//     libdualpipe_cuda.so ── c10_cuda, torch_cuda, cudart, nccl
//
// The module uses headers and interfaces of exec/ alone, and holds no second copy of the library, which would have its
// own idea of who has a meter. Exceptions pass between the two: the C++ library knows their types by name.
#pragma once

#include <memory>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/transport/nccl_api.h"

namespace dualpipe::detail::cuda {

// To be raised whenever Device, Hardware, CudaOptions, Nccl or this changes.
constexpr int cuda_module_version = 5;

struct CudaModule {
  int version = cuda_module_version;  // stays the first
  // Throws InputError where there is no GPU that could be used.
  std::unique_ptr<Hardware> (*hardware)(const CudaOptions& options) = nullptr;
  std::shared_ptr<Nccl> (*nccl)() = nullptr;  // null: built without NCCL
};

// The one symbol of the module, of this type.
constexpr auto cuda_module_symbol = "dualpipe_cuda_module";
using CudaModuleFunction = const CudaModule* (*)();

}  // namespace dualpipe::detail::cuda
