// Ends this process where it waits for others in a call that nothing can break off, as all that are collective in MPI.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

namespace dualpipe {

// While it lives, it calls `end`, which does not return, where a stop is requested or the timeout is over.
class Watchdog {
 public:
  enum class Cause { stop, timeout };
  using End = std::function<void(Cause)>;

  // `timeout`: nothing where there is none.
  Watchdog(std::stop_token stop, std::optional<std::chrono::nanoseconds> timeout, End end);
  ~Watchdog() = default;
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch(const std::stop_token& is_over, const std::stop_token& stop,
             std::optional<std::chrono::nanoseconds> timeout) const;

  End end_;
  mutable std::mutex mutex_;
  mutable std::condition_variable_any changed_;
  std::jthread thread_;
};

}  // namespace dualpipe
