#include "start_up.h"

#include <fmt/format.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <utility>

namespace dualpipe {
namespace {

[[noreturn]] void end_process(const std::string& reason) {
  constexpr int exit_failed = 1;
  std::cerr << "error: " << reason << '\n';
  _exit(exit_failed);
}

}  // namespace

StartUp::StartUp(std::stop_token stop, std::optional<std::chrono::nanoseconds> timeout) {
  thread_ = std::jthread(
      [this, stop = std::move(stop), timeout](const std::stop_token& is_over) { watch(is_over, stop, timeout); });
}

void StartUp::watch(const std::stop_token& is_over, const std::stop_token& stop,
                    std::optional<std::chrono::nanoseconds> timeout) {
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
  if (is_over.stop_requested()) return;
  if (is_stopped()) end_process("the run was interrupted while its processes started");
  end_process(fmt::format(
      "MPI has not connected the processes within {} s: one of them has ended already, or has not begun, and what it "
      "printed tells why; --timeout gives them more time",
      std::chrono::duration<double>(*timeout).count()));
}

}  // namespace dualpipe
