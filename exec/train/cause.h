// How a run ends before its time. Private to exec/train.
#pragma once

#include <exception>
#include <mutex>

namespace dualpipe::detail::train {

constexpr auto interrupted = "the run was interrupted";

// Why the run ended: the first failure, but for those of ranks that only heard of another's.
class Cause {
 public:
  void note(const std::exception_ptr& error, bool is_own) {
    const std::lock_guard lock(mutex_);
    if (!error_ || (is_own && !is_own_)) {
      error_ = error;
      is_own_ = is_own;
    }
  }
  // After all ranks have ended.
  [[nodiscard]] std::exception_ptr error() const { return error_; }
  [[nodiscard]] bool is_own() const { return is_own_; }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  bool is_own_ = false;
};

}  // namespace dualpipe::detail::train
