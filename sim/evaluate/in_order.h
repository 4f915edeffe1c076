// Independent pieces of work on all cores, whose results are taken one after the other, in order. Private to sim.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace dualpipe::detail::evaluate {

// A piece may be begun so far ahead of the first whose result has not been taken: so many results at most wait for a
// piece that takes long.
inline constexpr std::size_t ahead_max = 1024;

template <typename Result, typename Work, typename Take>
class InOrder {
 public:
  InOrder(std::size_t count, const Work& work, const Take& take)
      : count_(count), work_(work), take_(take), waiting_(std::min(count, ahead_max)) {}

  void run(std::size_t threads) {
    {
      std::vector<std::jthread> others;
      try {
        while (others.size() + 1 < threads) others.emplace_back([this] { run_pieces(); });
      } catch (const std::system_error&) {
        // The system has no more threads to give: those that are there do the work.
      }
      run_pieces();
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void run_pieces() {
    for (std::size_t piece = next_++; piece < count_ && begins(piece); piece = next_++) hand_in(piece, work_(piece));
  }

  // Waits for its turn. False: there is an error, and no more to do. The first piece that is not taken never waits.
  bool begins(std::size_t piece) {
    std::unique_lock lock(mutex_);
    moved_.wait(lock, [&] { return error_ || piece - taken_ < waiting_.size(); });
    return !error_;
  }

  // Whoever hands in the piece that is to be taken next takes those behind it, too, that were waiting for it.
  void hand_in(std::size_t piece, Result result) {
    const std::scoped_lock lock(mutex_);
    waiting_[piece % waiting_.size()] = std::move(result);
    try {
      while (!error_ && taken_ < count_ && waiting_[taken_ % waiting_.size()]) {
        take_(taken_, *std::exchange(waiting_[taken_ % waiting_.size()], std::nullopt));
        ++taken_;
      }
    } catch (...) {
      error_ = std::current_exception();
    }
    moved_.notify_all();
  }

  const std::size_t count_;
  const Work& work_;
  const Take& take_;
  std::atomic<std::size_t> next_ = 0;

  std::mutex mutex_;  // of all below
  std::condition_variable moved_;
  std::vector<std::optional<Result>> waiting_;  // piece i in place i modulo its size
  std::size_t taken_ = 0;
  std::exception_ptr error_;
};

// `work(i)`, which throws nothing, for every i below `count`; `take(i, result)` for one after the other, and in order,
// each by the thread that happens to be there. What `take` throws ends all of it, and is thrown here. 0 threads: as
// many as there are cores. One is the caller's: then all of it is a plain loop.
template <typename Result, typename Work, typename Take>
void in_order(std::size_t count, std::size_t threads, const Work& work, const Take& take) {
  if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
  threads = std::min(threads, count);
  if (threads > 1) {
    InOrder<Result, Work, Take>(count, work, take).run(threads);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) take(i, work(i));
}

}  // namespace dualpipe::detail::evaluate
