// Loads the CUDA module, so that this library needs none of CUDA's.
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/cuda/module.h"
#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::cuda::cuda_module_symbol;
using detail::cuda::cuda_module_version;
using detail::cuda::CudaModule;
using detail::cuda::CudaModuleFunction;

namespace {

namespace fs = std::filesystem;

constexpr auto file_name = "libdualpipe_cuda.so";
constexpr auto file_variable = "DUALPIPE_CUDA_MODULE";

#ifdef DUALPIPE_HAS_CUDA
constexpr bool is_built = true;
#else
constexpr bool is_built = false;
#endif

// The file that this code was linked into: a tool, or a library that somebody else's program has loaded.
fs::path own_file() {
  Dl_info info{};
  void* entry = nullptr;
  const auto here = reinterpret_cast<const void*>(&own_file);
  std::error_code error;
  if (dladdr1(here, &info, &entry, RTLD_DL_LINKMAP) != 0 && entry != nullptr) {
    const std::string name = static_cast<const link_map*>(entry)->l_name;
    if (!name.empty()) return fs::canonical(name, error);
  }
  return fs::read_symlink("/proc/self/exe", error);  // the program has no name there
}

// Where an installation, or a build, has it: in that file's folder, or in the one for libraries, beside it.
std::vector<fs::path> places() {
  const fs::path folder = own_file().parent_path();
  return {folder / file_name, folder / ".." / DUALPIPE_LIBDIR / file_name};
}

fs::path module_file() {
  if (const char* const given = std::getenv(file_variable); given != nullptr && *given != '\0') {
    if (fs::exists(given)) return given;
    throw InputError(fmt::format("cuda: there is no file {}, which {} names", given, file_variable));
  }
  for (const fs::path& place : places()) {
    if (fs::exists(place)) return place;
  }
  if (!is_built) {
    throw InputError(
        "cuda: this was built without CUDA. On a machine with an NVIDIA GPU: tools/setup.sh run, then configure again; "
        "what CMake calls left out says what it misses");
  }
  std::vector<std::string> names;
  for (const fs::path& place : places()) names.push_back(place.lexically_normal().string());
  throw InputError(fmt::format("cuda: {} is not there: looked for {}; or name it in {}", file_name,
                               fmt::join(names, " and "), file_variable));
}

// Stays loaded for ever: LibTorch's part for CUDA cannot be unloaded.
const CudaModule& load(const fs::path& file) {
  void* const handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const std::string why = dlerror();
    const bool is_library = why.find(": cannot open shared object file") != std::string::npos;
    throw InputError(fmt::format("cuda: {} cannot be loaded: {}{}", file.lexically_normal().string(), why,
                                 is_library ? ". LibTorch for CUDA needs that library: tools/setup.sh run installs it "
                                              "on a machine with a GPU; or name its folder in LD_LIBRARY_PATH"
                                            : ""));
  }
  void* const symbol = dlsym(handle, cuda_module_symbol);
  const CudaModule* const module = symbol == nullptr ? nullptr : reinterpret_cast<CudaModuleFunction>(symbol)();
  if (module == nullptr || module->version != cuda_module_version) {
    throw InputError(fmt::format("cuda: {} is of another version of DualPipe; build both together",
                                 file.lexically_normal().string()));
  }
  return *module;
}

}  // namespace

std::unique_ptr<Hardware> cuda_hardware(const CudaOptions& options) {
  CudaOptions complete = options;
  if (!complete.local) complete.local = local_process();
  return load(module_file()).hardware(complete);
}

std::shared_ptr<Nccl> cuda_nccl() {
  const CudaModule& module = load(module_file());
  if (module.nccl != nullptr) return module.nccl();
  throw InputError(
      "nccl: the CUDA module was built without NCCL; what CMake calls left out says what it misses. The ranks of one "
      "process share a GPU without it: --transport threads");
}

}  // namespace dualpipe
