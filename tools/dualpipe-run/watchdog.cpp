#include "watchdog.h"

#include <utility>

namespace dualpipe {

Watchdog::Watchdog(std::stop_token stop, std::optional<std::chrono::nanoseconds> timeout, End end)
    : end_(std::move(end)), thread_([this, stop = std::move(stop), timeout](const std::stop_token& is_over) {
        watch(is_over, stop, timeout);
      }) {}

void Watchdog::watch(const std::stop_token& is_over, const std::stop_token& stop,
                     std::optional<std::chrono::nanoseconds> timeout) const {
  const auto begin = std::chrono::steady_clock::now();
  const std::stop_callback wake(stop, [this] {
    { const std::lock_guard lock(mutex_); }  // who has looked already waits by now
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  const auto is_stopped = [&] { return stop.stop_requested(); };
  if (timeout) {
    (void)changed_.wait_until(lock, is_over, begin + *timeout, is_stopped);
  } else {
    (void)changed_.wait(lock, is_over, is_stopped);
  }
  if (!is_over.stop_requested()) end_(is_stopped() ? Cause::stop : Cause::timeout);
}

}  // namespace dualpipe
