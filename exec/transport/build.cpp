#include "dualpipe/exec/transport/build.h"

#include <fmt/format.h>
#include <torch/version.h>

#include <bit>
#include <cstddef>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

// To be counted up whenever a build reads what an older one sends as something else.
constexpr int wire_format = 2;

}  // namespace

std::string this_build() {
  return fmt::format("DualPipe {} (wire format {}, {}-endian, {} bits, LibTorch {}, compiler {})", DUALPIPE_VERSION,
                     wire_format, std::endian::native == std::endian::little ? "little" : "big",
                     8 * sizeof(std::size_t), TORCH_VERSION, __VERSION__);
}

void check_same_build(std::span<const std::string> builds) {
  for (std::size_t process = 1; process < builds.size(); ++process) {
    if (builds[process] == builds[0]) continue;
    throw InputError(fmt::format("process 0 runs {}, and process {} {}; start the same build on all hosts", builds[0],
                                 process, builds[process]));
  }
}

}  // namespace dualpipe::detail::transport
