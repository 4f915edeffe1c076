// The order in which a program's messages are matched where order alone tells them apart. Private to exec/transport.
#pragma once

#include <cstddef>

#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {

// `streams`: 2, for activations and for gradients, or 1 for both. Throws InputError if two ranks issue the messages
// between them, of one stream, in different orders, and DeadlockError if the program hangs with its batches on one
// stream per rank.
void check_message_order(const Program& program, std::size_t streams);

// Of a send or receive: 0 for activations, 1 for gradients.
[[nodiscard]] std::size_t direction_of(Kind kind);
// The op without with_next, so that it is the same wherever the message stands in a batch.
[[nodiscard]] Op plain(Op message);

}  // namespace dualpipe::detail::transport
