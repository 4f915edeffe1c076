// A rank that stays away until all others have ended: what a test says of them then holds on a machine of any speed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace dualpipe::test {

class Absence {
 public:
  // `others`: how many wait for it.
  explicit Absence(int others) : others_(others) {}

  // Called by the rank itself. Nobody who does not hang needs a minute.
  void begin() {
    std::unique_lock lock(mutex_);
    was_too_short_ = !ended_.wait_for(lock, std::chrono::minutes(1), [&] { return others_ == 0; });
  }
  // Called by each of the others.
  void one_has_ended() {
    const std::lock_guard lock(mutex_);
    --others_;
    ended_.notify_all();
  }
  // Whether the rank came back before all others had ended.
  [[nodiscard]] bool was_too_short() const {
    const std::lock_guard lock(mutex_);
    return was_too_short_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  int others_;
  bool was_too_short_ = false;
};

}  // namespace dualpipe::test
