// The ranks of this process, each on a thread of its own, and how they come to an end together. Private to exec/train.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/transport.h"

namespace dualpipe::detail::train {

constexpr auto interrupted = "the run was interrupted";

// Where the ranks of a process wait until all of them have come.
class StepBarrier {
 public:
  explicit StepBarrier(int count) : count_(count) {}

  // Thrown in a rank that waits, or comes to wait, after stop(), so that either all ranks go on from a meeting, or
  // none. The rank that called stop() knows the reason.
  struct Stopped {};

  // The last rank to come calls `meanwhile`; then all go on.
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
    const unsigned round = round_;
    all_here_.wait(lock, [&] { return round_ != round || stopped_; });
    if (round_ == round) throw Stopped{};
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

class RankTeam {
 public:
  // `here`: the ranks. `transports`: by rank; those of the ranks here are used. Both are looked at by run().
  RankTeam(const std::vector<int>& here, const std::vector<std::unique_ptr<Transport>>& transports,
           std::stop_token stop)
      : here_(here), transports_(transports), stop_(std::move(stop)), barrier_(static_cast<int>(here.size())) {}

  // Runs `work` for each rank on a thread of its own, and returns when all have ended. Each op may use so many threads.
  // The first failure ends all ranks, here and in other processes, and so does a stop, or a system that refuses a
  // thread.
  void run(int threads_per_rank, const std::function<void(int rank, Transport& transport)>& work);

  // In `work`: StepBarrier::meet().
  template <typename Meanwhile>
  void meet(Meanwhile&& meanwhile) {
    barrier_.meet(std::forward<Meanwhile>(meanwhile));
  }

  // After run(): the first failure, null if there was none. Errors of ranks that only heard of a failure do not count.
  [[nodiscard]] std::exception_ptr error() const { return error_; }
  // Whether no rank of this process has failed, but the run was stopped, here or in another process.
  [[nodiscard]] bool was_interrupted() const { return is_interrupted_ && !is_own_; }

 private:
  void run_rank(int rank, int threads, const std::function<void(int rank, Transport& transport)>& work);
  void note(const std::exception_ptr& error, bool is_own);
  // Notes a failure that began with this rank, and ends all others.
  void end_all(Transport& transport, const std::string& reason, const std::exception_ptr& error);

  [[nodiscard]] Transport& transport_of(int rank) const { return *transports_[static_cast<std::size_t>(rank)]; }

  const std::vector<int>& here_;
  const std::vector<std::unique_ptr<Transport>>& transports_;
  std::stop_token stop_;
  StepBarrier barrier_;
  std::mutex mutex_;  // of the next two
  std::exception_ptr error_;
  bool is_own_ = false;  // whether error_ began with a rank here
  std::atomic<bool> is_interrupted_{false};
};

}  // namespace dualpipe::detail::train
