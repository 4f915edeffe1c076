// Ranks that are threads of one process: a tensor is handed over as it is, nothing is copied.
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "exec/transport/transport.h"

namespace dualpipe {
namespace {

using Clock = std::chrono::steady_clock;

// How long a rank looks out for a message before it sleeps: to wake a sleeper takes longer than most messages do.
constexpr auto spin_time = std::chrono::microseconds(20);

std::string seconds(std::chrono::nanoseconds duration) {
  return fmt::format("{} s", std::chrono::duration<double>(duration).count());
}

// Whether the run was aborted, and why.
class Verdict {
 public:
  // The first reason counts.
  void abort(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (aborted_.load(std::memory_order_relaxed)) return;
    reason_ = reason;
    aborted_.store(true, std::memory_order_release);
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

// The messages on their way to one stage, of one kind. They are mostly taken in the order in which they come.
struct Letter {
  std::uint32_t micro_batch;
  Received content;  // `arrived` may lie ahead
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
  [[nodiscard]] std::optional<Received> take(Box& box, std::uint32_t micro_batch, Clock::time_point deadline,
                                             const Verdict& verdict, bool may_spin) {
    std::unique_lock lock(mutex_);
    while (true) {
      verdict.throw_if_aborted();
      const auto letter = std::ranges::find(box, micro_batch, &Letter::micro_batch);
      const auto now = Clock::now();
      if (letter != box.end() && letter->content.arrived <= now) {
        Received content = std::move(letter->content);
        box.erase(letter);
        return content;
      }
      if (now >= deadline) return std::nullopt;
      if (std::exchange(may_spin, false)) {
        const auto seen = count_.load(std::memory_order_relaxed);
        lock.unlock();
        spin(seen, now + spin_time);
        lock.lock();
        continue;
      }
      changed_.wait_until(lock, letter == box.end() ? deadline : std::min(deadline, letter->content.arrived));
    }
  }

  void wake() {
    { const std::lock_guard lock(mutex_); }  // who has looked at the verdict already sleeps by now
    changed_.notify_all();
  }

 private:
  // Who is on the same core, perhaps the sender, goes first.
  void spin(std::uint64_t seen, Clock::time_point end) const {
    while (count_.load(std::memory_order_acquire) == seen && Clock::now() < end) std::this_thread::yield();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<std::uint64_t> count_{0};  // of the letters put so far
};

// Where the ranks meet, each with its part, until all are there. Then the last one to come makes the result of all.
template <typename Part, typename Result>
class Meeting {
 public:
  explicit Meeting(std::size_t parts) : parts_(parts) {}

  void leave(std::size_t index, Part part) {
    const std::lock_guard lock(mutex_);
    next_->parts[index] = std::move(part);
  }

  // Nothing if the others did not come in time; `combine` makes the result of the parts.
  template <typename Combine>
  [[nodiscard]] std::optional<Result> meet(std::size_t index, Part part, Clock::time_point deadline,
                                           const Verdict& verdict, Combine combine) {
    std::unique_lock lock(mutex_);
    verdict.throw_if_aborted();
    const std::shared_ptr<Round> round = next_;
    round->parts[index] = std::move(part);
    if (std::ranges::all_of(round->parts, &std::optional<Part>::has_value)) {
      round->result = combine(std::as_const(round->parts));
      next_ = std::make_shared<Round>(parts_);
      changed_.notify_all();
    } else {
      changed_.wait_until(lock, deadline, [&] { return round->result || verdict.aborted(); });
      if (!round->result) verdict.throw_if_aborted();
    }
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
    std::vector<std::optional<Part>> parts;
    std::optional<Result> result;
  };

  std::size_t parts_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Round> next_ = std::make_shared<Round>(parts_);
};

using Tensors = std::vector<at::Tensor>;
struct Summed {};

// Stages whose tensors are summed, in order, and where these meet.
struct Group {
  explicit Group(std::vector<int> all) : stages(std::move(all)), meeting(stages.size()) {}

  [[nodiscard]] std::size_t index_of(int stage) const {
    return static_cast<std::size_t>(std::ranges::find(stages, stage) - stages.begin());
  }

  std::vector<int> stages;
  Meeting<Tensors, Summed> meeting;
};

// What the ranks' transports have in common.
class Hub {
 public:
  Hub(const Placement& placement, const TransportOptions& options)
      : placement_(placement),
        options_(options),
        boxes_(2 * placement.rank_of.size()),
        mailboxes_(static_cast<std::size_t>(placement.ranks)),
        sum_(static_cast<std::size_t>(placement.ranks)) {
    for (int stage = 0; stage < placement.stages(); ++stage) {
      previous_.push_back(placement.previous(stage));
      next_.push_back(placement.next(stage));
    }
  }

  [[nodiscard]] int rank_of(int stage) const { return placement_.rank_of[static_cast<std::size_t>(stage)]; }

  void send(Op message, at::Tensor tensor) {
    const bool forward = message.kind == Kind::send_forward;
    const int to = (forward ? next_ : previous_)[message.stage].value();
    const auto arrives = Clock::now() + options_.link_delay;
    mailbox_of(to).put(box_of(to, forward), {message.micro_batch, {std::move(tensor), arrives}});
  }

  [[nodiscard]] Received wait(Op message) {
    const bool forward = message.kind == Kind::receive_forward;
    const auto received = mailbox_of(message.stage)
                              .take(box_of(message.stage, forward), message.micro_batch,
                                    Clock::now() + options_.timeout, verdict_, spins_);
    if (received) return *received;
    const int from = (forward ? previous_ : next_)[message.stage].value();
    throw TimeoutError(fmt::format("nothing came from rank {} for {} within {}", rank_of(from), to_text(message),
                                   seconds(options_.timeout)));
  }

  // `left`: the tensors of the rank's other stages of this group, which wait for its last.
  void reduce(Group& group, int stage, std::span<at::Tensor> tensors, std::vector<Tensors>& left) {
    const auto same_rank = [&](int other) { return rank_of(other) == rank_of(stage); };
    const std::size_t index = group.index_of(stage);
    const Tensors& own = left.emplace_back(tensors.begin(), tensors.end());
    if (std::ssize(left) < std::ranges::count_if(group.stages, same_rank)) return group.meeting.leave(index, own);
    const auto summed = group.meeting.meet(index, own, Clock::now() + options_.timeout, verdict_,
                                           [&](const auto& parts) { return add(group, parts); });
    if (!summed) throw TimeoutError(absent(group));
    left.clear();
  }

  [[nodiscard]] double sum(int rank, double value) {
    const auto add_values = [](const auto& values) {
      double total = 0;
      for (const auto& each : values) total += *each;
      return total;
    };
    const auto deadline = Clock::now() + options_.timeout;
    const auto total = sum_.meet(static_cast<std::size_t>(rank), value, deadline, verdict_, add_values);
    if (total) return *total;
    throw TimeoutError(fmt::format("rank {} waited for the end of the step {}; not there: rank {}", rank,
                                   seconds(options_.timeout), fmt::join(sum_.missing(), ", ")));
  }

  void abort(const std::string& reason) {
    verdict_.abort(reason);
    for (Mailbox& each : mailboxes_) each.wake();
    sum_.wake();
    const std::lock_guard lock(groups_mutex_);
    for (auto& each : groups_) each.second.meeting.wake();
  }

  // Made when a rank first comes to it.
  [[nodiscard]] Group& group_of(const std::vector<int>& stages) {
    const std::lock_guard lock(groups_mutex_);
    return groups_.try_emplace(stages, stages).first->second;
  }

 private:
  [[nodiscard]] Mailbox& mailbox_of(int stage) { return mailboxes_[static_cast<std::size_t>(rank_of(stage))]; }
  [[nodiscard]] Box& box_of(int stage, bool forward) {
    return boxes_[2 * static_cast<std::size_t>(stage) + (forward ? 0 : 1)];
  }

  // In the order of the stages, whoever comes last. He does it for all, in their own tensors: so nothing is allocated.
  [[nodiscard]] Summed add(const Group& group, const std::vector<std::optional<Tensors>>& parts) const {
    const c10::NoGradGuard no_grad;
    const Tensors& sums = *parts[0];
    for (std::size_t i = 1; i < parts.size(); ++i) check_alike(group, sums, i, *parts[i]);
    for (std::size_t k = 0; k < sums.size(); ++k) {
      for (std::size_t i = 1; i < parts.size(); ++i) sums[k].add_((*parts[i])[k]);
      for (std::size_t i = 1; i < parts.size(); ++i) (*parts[i])[k].copy_(sums[k]);
    }
    return {};
  }

  void check_alike(const Group& group, const Tensors& first, std::size_t index, const Tensors& other) const {
    const auto describe = [&](std::size_t i, const Tensors& tensors) {
      std::string sizes;
      for (const at::Tensor& each : tensors)
        sizes += fmt::format(" {}[{}]", c10::toString(each.scalar_type()), fmt::join(each.sizes(), ","));
      return fmt::format("stage {} (rank {}) has{}", group.stages[i], rank_of(group.stages[i]), sizes);
    };
    const bool alike = std::ranges::equal(first, other, [](const at::Tensor& a, const at::Tensor& b) {
      return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type();
    });
    if (alike) return;
    throw std::runtime_error(
        fmt::format("gradients to be summed are unlike: {}; {}", describe(0, first), describe(index, other)));
  }

  [[nodiscard]] std::string absent(const Group& group) const {
    std::vector<std::string> stages;
    for (const std::size_t i : group.meeting.missing()) {
      stages.push_back(fmt::format("stage {} (rank {})", group.stages[i], rank_of(group.stages[i])));
    }
    return fmt::format("waited {} for the gradients of {}", seconds(options_.timeout), fmt::join(stages, ", "));
  }

  Placement placement_;
  TransportOptions options_;
  bool spins_ = std::thread::hardware_concurrency() >= static_cast<unsigned>(placement_.ranks);  // a core for each rank
  std::vector<std::optional<int>> previous_;                                                     // by stage
  std::vector<std::optional<int>> next_;
  std::vector<Box> boxes_;          // of each stage, for its input and for the gradient of its output
  std::vector<Mailbox> mailboxes_;  // by rank
  std::mutex groups_mutex_;
  std::map<std::vector<int>, Group> groups_;  // by stages
  Meeting<double, double> sum_;
  Verdict verdict_;
};

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  void send(Op message, at::Tensor tensor) override { hub_->send(message, std::move(tensor)); }
  void post_receive(Op) override {}  // what is sent is here at once
  [[nodiscard]] Received wait(Op message) override { return hub_->wait(message); }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    if (stages.size() == 1) return;
    Group& group = hub_->group_of({stages.begin(), stages.end()});
    hub_->reduce(group, stage, tensors, left_[&group]);
  }
  [[nodiscard]] double sum(double value) override { return hub_->sum(rank_, value); }
  void abort(const std::string& reason) override { hub_->abort(reason); }

 private:
  std::shared_ptr<Hub> hub_;
  int rank_;
  std::map<const Group*, std::vector<Tensors>> left_;  // what waits for the rank's last stage of the group
};

}  // namespace

std::vector<std::unique_ptr<Transport>> thread_transports(const Placement& placement, const TransportOptions& options) {
  const auto hub = std::make_shared<Hub>(placement, options);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int rank = 0; rank < placement.ranks; ++rank) transports.push_back(std::make_unique<ThreadTransport>(hub, rank));
  return transports;
}

}  // namespace dualpipe
