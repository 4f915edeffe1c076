#include "python/binding/exec/interrupt.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <system_error>
#include <thread>

namespace dualpipe::python {
namespace {

// A handler may do little more than write to a pipe; a thread reads what comes there. Made once in a process, and anew
// in one that was forked from it, which has no thread; never ended.
class Listener {
 public:
  static Listener& of_this_process() {
    static Listener* listener = nullptr;
    if (listener == nullptr || listener->process_ != ::getpid()) listener = new Listener();
    return *listener;
  }

  void begin(std::stop_source& source) {
    {
      const std::lock_guard lock(mutex_);
      source_ = &source;
    }
    pipe_end = pipe_[1];
    struct sigaction action = {};
    action.sa_handler = &on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_ONSTACK;
    ::sigaction(SIGINT, &action, &before);
  }
  void end() {
    ::sigaction(SIGINT, &before, nullptr);
    const std::lock_guard lock(mutex_);
    source_ = nullptr;
  }

 private:
  Listener() {
    if (::pipe2(pipe_.data(), O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    std::thread thread([this] { listen(); });
    pthread_setname_np(thread.native_handle(), "interrupts");
    thread.detach();
  }

  static void on_signal(int signal) {
    const int error = errno;
    if (before.sa_handler != SIG_IGN && before.sa_handler != SIG_DFL) before.sa_handler(signal);
    [[maybe_unused]] const auto written = ::write(pipe_end, "", 1);
    errno = error;
  }

  void listen() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    char byte = 0;
    while (::read(pipe_[0], &byte, 1) == 1) {
      const std::lock_guard lock(mutex_);
      if (source_ != nullptr) source_->request_stop();
    }
  }

  // For the handler.
  static inline int pipe_end = -1;
  static inline struct sigaction before = {};

  pid_t process_ = ::getpid();
  std::array<int, 2> pipe_{};
  std::mutex mutex_;
  std::stop_source* source_ = nullptr;
};

}  // namespace

StopAtInterrupt::StopAtInterrupt(std::stop_source& source, bool is_wanted) : is_wanted_(is_wanted) {
  if (is_wanted_) Listener::of_this_process().begin(source);
}

StopAtInterrupt::~StopAtInterrupt() {
  if (is_wanted_) Listener::of_this_process().end();
}

}  // namespace dualpipe::python
