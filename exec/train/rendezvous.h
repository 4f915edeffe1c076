// Where all rank threads wait for each other. Private to exec/train.
#pragma once

#include <condition_variable>
#include <mutex>

namespace dualpipe::detail::train {

class Rendezvous {
 public:
  explicit Rendezvous(int count) : count_(count) {}

  // Thrown where a rank waits, or comes to wait, after stop(): another one has the reason.
  struct Stopped {};

  // The last to come calls `meanwhile`, then all go on.
  template <typename Meanwhile>
  void meet(Meanwhile&& meanwhile) {
    std::unique_lock lock(mutex_);
    if (stopped_) throw Stopped{};
    if (++waiting_ == count_) {
      meanwhile();
      waiting_ = 0;
      ++round_;
      all_here_.notify_all();
      return;
    }
    all_here_.wait(lock, [this, round = round_] { return round_ != round || stopped_; });
    if (stopped_) throw Stopped{};
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    all_here_.notify_all();
  }

 private:
  const int count_;
  std::mutex mutex_;
  std::condition_variable all_here_;
  int waiting_ = 0;
  unsigned round_ = 0;
  bool stopped_ = false;
};

}  // namespace dualpipe::detail::train
