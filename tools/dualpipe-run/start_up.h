// The start of a run's processes, as far as nothing can end what waits in it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

namespace dualpipe {

// While it lives, this process tells why and ends, with the exit status of a failed run, where a stop is requested or
// the start takes longer than this. MPI_Init needs that: for a process that has ended before, it waits for good.
class StartUp {
 public:
  // `timeout`: nothing where what starts keeps to one by itself.
  StartUp(std::stop_token stop, std::optional<std::chrono::nanoseconds> timeout);
  ~StartUp() = default;
  StartUp(const StartUp&) = delete;
  StartUp& operator=(const StartUp&) = delete;

 private:
  void watch(const std::stop_token& is_over, const std::stop_token& stop,
             std::optional<std::chrono::nanoseconds> timeout);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::jthread thread_;
};

}  // namespace dualpipe
