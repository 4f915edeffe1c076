// Ctrl-C ends a run in good order; a second one ends the process at once.
#pragma once

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <stop_token>
#include <thread>

namespace dualpipe {

// While it lives, SIGINT and SIGTERM request a stop. Made before any other thread, so that none takes the signals.
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
