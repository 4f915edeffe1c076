// The order in which NCCL moves the messages of a program. Private to exec/transport.
#pragma once

#include <cstddef>

#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {

// Throws InputError if two ranks issue the messages between them, of one direction, in different orders, and
// DeadlockError if the program hangs with its batches on one stream per rank.
void check_for_nccl(const Program& program);

// Of a send or receive: 0 for activations, 1 for gradients.
[[nodiscard]] std::size_t direction_of(Kind kind);
// The message by itself, not as one of a batch.
[[nodiscard]] Op plain(Op message);

}  // namespace dualpipe::detail::transport
