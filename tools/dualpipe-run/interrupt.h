// Ctrl-C, a terminal that closes, or who asks this process to end, ends a run in good order; to ask a second time ends
// the process at once.
#pragma once

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <stop_token>
#include <thread>

namespace dualpipe {

// While it lives, SIGINT, SIGTERM and SIGHUP request a stop; SIGHUP where it was not ignored before. Made before any
// other thread, so that none takes the signals.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  [[nodiscard]] std::stop_token token() const { return source_.get_token(); }
  // Which one requested it; 0: none.
  [[nodiscard]] int signal() const { return signal_; }

 private:
  void wait_for_signals(const std::stop_token& ended);

  sigset_t signals_{};
  sigset_t before_{};
  std::stop_source source_;
  std::atomic<int> signal_{0};
  std::jthread thread_;
};

}  // namespace dualpipe
