// Which build of DualPipe a process runs. What processes send each other is made of the bytes of structures, so that
// all have to be of the same build. Private to exec/transport.
#pragma once

#include <span>
#include <string>

namespace dualpipe::detail::transport {

// All that the bytes depend on: "DualPipe 0.1.0 (wire format 2, little-endian, 64 bits, LibTorch 2.9.0, compiler …)".
[[nodiscard]] std::string this_build();

// `builds`: by process. Throws InputError that names both where one is not that of process 0.
void check_same_build(std::span<const std::string> builds);

}  // namespace dualpipe::detail::transport
