// The threads of the ranks of this process. Private to exec/train.
#pragma once

#include <functional>
#include <span>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

// Runs `run` for each of these ranks, in a thread of its own, and returns when all have ended. If the system does not
// give so many threads `refused` hears it, and has to end those that run: here and in other processes they wait for the
// missing ones.
void run_rank_threads(std::span<const int> ranks, const std::function<void(int rank)>& run,
                      const std::function<void(const InputError& error)>& refused);

}  // namespace dualpipe::detail::train
