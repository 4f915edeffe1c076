#include "interrupt.h"

#include <unistd.h>

namespace dualpipe {

Interrupt::Interrupt() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  thread_ = std::jthread([this](const std::stop_token& ended) { wait_for_signals(ended); });
}

Interrupt::~Interrupt() {
  thread_.request_stop();
  pthread_kill(thread_.native_handle(), SIGINT);  // wakes it up
  thread_.join();
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void Interrupt::wait_for_signals(const std::stop_token& ended) {
  constexpr int exit_signalled = 128;
  std::jthread stopping;  // what is called at a stop may wait, but a second signal may not
  while (true) {
    int signal = 0;
    sigwait(&signals_, &signal);
    if (ended.stop_requested()) return;
    if (stopping.joinable()) _exit(exit_signalled + signal);
    signal_ = signal;
    stopping = std::jthread([this] { source_.request_stop(); });
  }
}

}  // namespace dualpipe
