// Which build of DualPipe a process runs. Processes send each other structures as they stand in memory, so that all
// have to run the same build. Private to exec/transport.
#pragma once

#include <span>
#include <string>

namespace dualpipe::detail::transport {

// All that the bytes of a message depend on: "DualPipe 0.1.0 (wire format 2, little-endian, 64 bits, LibTorch 2.9.0,
// compiler …)".
[[nodiscard]] std::string this_build();

// `builds`: by process. Throws InputError that names both where one is not that of process 0.
void check_same_build(std::span<const std::string> builds);

}  // namespace dualpipe::detail::transport
