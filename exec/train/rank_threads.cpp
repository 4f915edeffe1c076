#include "dualpipe/exec/train/rank_threads.h"

#include <fmt/format.h>
#include <pthread.h>

#include <system_error>
#include <thread>
#include <vector>

namespace dualpipe::detail::train {

void run_rank_threads(std::span<const int> ranks, const std::function<void(int rank)>& run,
                      const std::function<void(const InputError& error)>& refused) {
  std::vector<std::jthread> threads;
  try {
    for (const int rank : ranks) {
      threads.emplace_back(run, rank);
      pthread_setname_np(threads.back().native_handle(), fmt::format("rank {}", rank).c_str());
    }
  } catch (const std::system_error& error) {
    refused(InputError(fmt::format("the system does not give {} threads, one for each rank: {}; use fewer --ranks",
                                   ranks.size(), error.what())));
  }
}

}  // namespace dualpipe::detail::train
