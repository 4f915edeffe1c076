// How ranks wait: for a message, for each other, and for the end of a run that another of them has aborted. Private to
// exec/transport.
#pragma once

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/transport.h"

namespace dualpipe::detail::transport {

using Clock = std::chrono::steady_clock;

inline std::string seconds(std::chrono::nanoseconds duration) {
  return fmt::format("{} s", std::chrono::duration<double>(duration).count());
}

// Whether the run was aborted, and why.
class Verdict {
 public:
  // The first reason counts. Returns whether this is the first.
  bool abort(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (aborted_.load(std::memory_order_relaxed)) return false;
    reason_ = reason;
    aborted_.store(true, std::memory_order_release);
    return true;
  }
  [[nodiscard]] bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  void throw_if_aborted() const {
    if (aborted()) throw TransportError(reason_);
  }

 private:
  std::mutex mutex_;
  std::string reason_;  // never changed once aborted_ is set
  std::atomic<bool> aborted_{false};
};

struct Waiting {
  Clock::time_point deadline;
  const Verdict& verdict;
  std::chrono::nanoseconds spin;          // looks out for so long before it sleeps
  const std::function<void()>& progress;  // meanwhile moves what is under way from other processes; empty: nothing is
};

// The messages on their way to one stage, of one kind. They are mostly taken in the order in which they come.
struct Letter {
  std::uint32_t number;
  Tensors content;
  Clock::time_point arrived;  // may lie ahead
  Mark ready{};
};
using Box = std::deque<Letter>;

// What one rank receives.
class Mailbox {
 public:
  void put(Box& box, Letter letter) {
    {
      const std::lock_guard lock(mutex_);
      box.push_back(std::move(letter));
      count_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_one();
  }

  // Nothing if it did not arrive in time.
  [[nodiscard]] std::optional<Letter> take(Box& box, std::uint32_t number, const Waiting& waiting) {
    std::unique_lock lock(mutex_);
    bool may_spin = waiting.spin.count() > 0;
    while (true) {
      waiting.verdict.throw_if_aborted();
      const auto letter = std::ranges::find(box, number, &Letter::number);
      const auto now = Clock::now();
      if (letter != box.end() && letter->arrived <= now) {
        Letter taken = std::move(*letter);
        box.erase(letter);
        return taken;
      }
      if (now >= waiting.deadline) return std::nullopt;
      if (std::exchange(may_spin, false)) {
        const auto seen = count_.load(std::memory_order_relaxed);
        lock.unlock();
        spin(seen, now + waiting.spin, waiting.progress);
        lock.lock();
        continue;
      }
      changed_.wait_until(lock, letter == box.end() ? waiting.deadline : std::min(waiting.deadline, letter->arrived));
    }
  }

  void wake() {
    { const std::lock_guard lock(mutex_); }  // who has looked at the verdict already sleeps by now
    changed_.notify_all();
  }

 private:
  // Who is on the same core, perhaps the sender, goes first.
  void spin(std::uint64_t seen, Clock::time_point end, const std::function<void()>& progress) const {
    while (count_.load(std::memory_order_acquire) == seen && Clock::now() < end) {
      if (progress) progress();
      std::this_thread::yield();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<std::uint64_t> count_{0};  // of the letters put so far
};

// Where some come together, each with its part, until all are there. Then one of those who wait makes the result of
// all.
template <typename Part, typename Result>
class Meeting {
 public:
  explicit Meeting(std::size_t parts) : parts_(parts) {}

  // Returns false if this part is there already.
  bool leave(std::size_t index, Part part) {
    const std::lock_guard lock(mutex_);
    if (next_->parts[index]) return false;
    next_->parts[index] = std::move(part);
    if (next_->is_complete()) changed_.notify_all();
    return true;
  }

  // Nothing if the others did not come in time; `combine` makes the result of the parts.
  template <typename Combine>
  [[nodiscard]] std::optional<Result> meet(std::size_t index, Part part, const Waiting& waiting, Combine combine) {
    std::unique_lock lock(mutex_);
    waiting.verdict.throw_if_aborted();
    const std::shared_ptr<Round> round = next_;
    round->parts[index] = std::move(part);
    changed_.wait_until(lock, waiting.deadline,
                        [&] { return round->result || round->is_complete() || waiting.verdict.aborted(); });
    if (!round->result && round->is_complete()) {
      round->result = combine(std::as_const(round->parts));
      next_ = std::make_shared<Round>(parts_);
      changed_.notify_all();
    }
    if (!round->result) waiting.verdict.throw_if_aborted();
    return round->result;
  }

  // Whose part is not there.
  [[nodiscard]] std::vector<std::size_t> missing() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < parts_; ++i) {
      if (!next_->parts[i]) indices.push_back(i);
    }
    return indices;
  }

  void wake() {
    { const std::lock_guard lock(mutex_); }
    changed_.notify_all();
  }

 private:
  struct Round {
    explicit Round(std::size_t count) : parts(count) {}
    [[nodiscard]] bool is_complete() const { return std::ranges::all_of(parts, &std::optional<Part>::has_value); }

    std::vector<std::optional<Part>> parts;
    std::optional<Result> result;
  };

  std::size_t parts_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Round> next_ = std::make_shared<Round>(parts_);
};

}  // namespace dualpipe::detail::transport
