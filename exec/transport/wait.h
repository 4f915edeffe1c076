// How a rank waits for messages, until they come or the run is aborted. Private to exec/transport.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
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
class AbortFlag {
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
  const AbortFlag& abort_flag;
  std::chrono::nanoseconds spin;          // so long it looks for the message in a loop before it sleeps
  const std::function<void()>& progress;  // called in that loop to move messages of other processes; may be empty
};

// What was delivered to a rank, and waits to be taken.
struct QueuedMessage {
  std::uint32_t micro_batch;
  Tensors tensors;
  Clock::time_point arrived;  // may lie ahead
  Event ready{};
};
// The messages of one kind to one stage; or what one stage brings to a sum, or one rank gets from it. They are mostly
// taken in the order in which they come.
using MessageQueue = std::deque<QueuedMessage>;

// Guards the queues of one rank, and is where the rank waits for what is put into them.
class Mailbox {
 public:
  void put(MessageQueue& queue, QueuedMessage message) {
    {
      const std::lock_guard lock(mutex_);
      push(queue, std::move(message));
    }
    changed_.notify_one();
  }
  // Returns false, and does nothing, where one is there already.
  [[nodiscard]] bool put_only(MessageQueue& queue, QueuedMessage message) {
    {
      const std::lock_guard lock(mutex_);
      if (!queue.empty()) return false;
      push(queue, std::move(message));
    }
    changed_.notify_one();
    return true;
  }

  // Waits for the message of a micro-batch. Nothing if it did not arrive in time.
  [[nodiscard]] std::optional<QueuedMessage> take(MessageQueue& queue, std::uint32_t micro_batch,
                                                  const Waiting& waiting) {
    return wait(waiting, [&](Clock::time_point now, Clock::time_point& next_look) {
      std::optional<QueuedMessage> taken;
      const auto found = std::ranges::find(queue, micro_batch, &QueuedMessage::micro_batch);
      if (found != queue.end() && found->arrived <= now) {
        taken = std::move(*found);
        queue.erase(found);
      } else if (found != queue.end()) {
        next_look = std::min(next_look, found->arrived);
      }
      return taken;
    });
  }

  // Waits for a message in each of the queues, and takes the first of each, in the order of the queues. Takes nothing,
  // and returns nothing, if they did not all come in time.
  [[nodiscard]] std::optional<std::vector<Tensors>> take_all(std::span<MessageQueue> queues, const Waiting& waiting) {
    return wait(waiting, [&](Clock::time_point, Clock::time_point&) {
      std::optional<std::vector<Tensors>> all;
      if (std::ranges::any_of(queues, &MessageQueue::empty)) return all;
      all.emplace();
      for (MessageQueue& each : queues) {
        all->push_back(std::move(each.front().tensors));
        each.pop_front();
      }
      return all;
    });
  }

  // Which of the queues are empty.
  [[nodiscard]] std::vector<std::size_t> empty_ones(std::span<const MessageQueue> queues) const {
    const std::lock_guard lock(mutex_);
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < queues.size(); ++i) {
      if (queues[i].empty()) indices.push_back(i);
    }
    return indices;
  }

  void wake() {
    { const std::lock_guard lock(mutex_); }  // who has looked at the flag already sleeps by now
    changed_.notify_all();
  }

 private:
  void push(MessageQueue& queue, QueuedMessage message) {
    queue.push_back(std::move(message));
    count_.fetch_add(1, std::memory_order_release);
  }

  // Calls `look(now, next_look)` under the lock whenever something was put, until it returns something, or nothing at
  // the deadline. It may move `next_look` forward, when it wants to be called again at the latest.
  template <typename Look>
  [[nodiscard]] auto wait(const Waiting& waiting, const Look& look)
      -> decltype(look(Clock::now(), std::declval<Clock::time_point&>())) {
    std::unique_lock lock(mutex_);
    bool may_spin = waiting.spin.count() > 0;
    while (true) {
      waiting.abort_flag.throw_if_aborted();
      const auto now = Clock::now();
      auto next_look = waiting.deadline;
      if (auto found = look(now, next_look)) return found;
      if (now >= waiting.deadline) return std::nullopt;
      if (std::exchange(may_spin, false)) {
        const auto seen = count_.load(std::memory_order_relaxed);
        lock.unlock();
        spin(seen, now + waiting.spin, waiting.progress);
        lock.lock();
        continue;
      }
      changed_.wait_until(lock, next_look);
    }
  }

  // Who is on the same core, perhaps the sender, goes first.
  void spin(std::uint64_t seen, Clock::time_point end, const std::function<void()>& progress) const {
    while (count_.load(std::memory_order_acquire) == seen && Clock::now() < end) {
      if (progress) progress();
      std::this_thread::yield();
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<std::uint64_t> count_{0};  // of what was put so far
};

}  // namespace dualpipe::detail::transport
