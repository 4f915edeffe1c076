#include "interrupt.h"

#include <unistd.h>

namespace dualpipe {
namespace {

// As nohup has it, for what is to outlive its terminal.
bool is_hangup_ignored() {
  struct sigaction action {};
  return sigaction(SIGHUP, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

Interrupt::Interrupt() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  if (!is_hangup_ignored()) sigaddset(&signals_, SIGHUP);
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
    // Where a terminal closes there come two, one from it and one from its shell: the second is no wish of its own.
    if (signal == SIGHUP) std::signal(SIGHUP, SIG_IGN);
    if (!stopping.joinable()) {
      signal_ = signal;
      stopping = std::jthread([this] { source_.request_stop(); });
    } else if (signal != SIGHUP) {
      _exit(exit_signalled + signal);
    }
  }
}

}  // namespace dualpipe
