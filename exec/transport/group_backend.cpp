#include "dualpipe/exec/transport/group_backend.h"

#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

// Of a wait that is ended by an abort alone: gloo has no other than one that expires.
constexpr auto for_ever = std::chrono::hours(24 * 365 * 100);

std::string reason_of(const std::exception& error) {
  const std::string text = detail::replay::text_of(error);
  return text.substr(0, text.find('\n'));
}

std::string text_of(const Transfer& transfer) {
  return fmt::format("{} {} rank {}", transfer.what, transfer.is_send ? "to" : "from", transfer.peer);
}

}  // namespace

std::string text_of(c10d::ProcessGroup& group) {
  try {
    return fmt::format("process group '{}'", group.getGroupName());
  } catch (const c10::Error&) {  // it has no name
    return "the process group";
  }
}

// The transfers of a group, each with a Work of its own.
class GroupBackend::HostWork final : public Work {
 public:
  explicit HostWork(std::size_t transfers) : parts_(transfers) {}

  // Before anybody else has it.
  void start(std::size_t transfer, c10::intrusive_ptr<c10d::Work> work, std::string text) {
    parts_[transfer].work = std::move(work);
    parts_[transfer].text = std::move(text);
  }

  [[nodiscard]] bool is_done(std::size_t transfer) override {
    return parts_[transfer].is_done.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool is_done() {
    return std::ranges::all_of(parts_, [](const Part& each) { return each.is_done.load(std::memory_order_acquire); });
  }

  void wait(std::size_t transfer) override {
    Part& part = parts_[transfer];
    const std::lock_guard lock(part.mutex);  // a second wait for the same Work would not end
    if (part.is_done) return;
    if (part.failure.empty()) {
      try {
        if (part.work->wait(for_ever)) {
          part.is_done.store(true, std::memory_order_release);
          return;
        }
        part.failure = fmt::format("{} was aborted", part.text);
      } catch (const std::exception& error) {
        part.failure = fmt::format("{} failed: {}", part.text, reason_of(error));
      }
    }
    throw TransferError(part.failure);
  }

  // Whoever waits, or will, is told that it was.
  void cancel() {
    for (Part& each : parts_) {
      if (each.is_done || !each.work) continue;
      try {
        each.work->abort();
      } catch (const std::exception&) {  // it has ended
      }
    }
  }

 private:
  struct Part {
    c10::intrusive_ptr<c10d::Work> work;
    std::string text;
    std::mutex mutex;
    std::atomic<bool> is_done = false;
    std::string failure;
  };
  std::vector<Part> parts_;
};

// Keeps transfers whose waits were aborted as long as their group lives. Where gloo finds that the buffer of a message
// has gone while a part of the message is still on its way, it reads no more from that connection, for any message: the
// group could not be used again.
void GroupBackend::keep_with(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                             std::vector<std::shared_ptr<HostWork>> works) {
  struct Kept {
    c10::weak_intrusive_ptr<c10d::ProcessGroup> group;
    std::vector<std::shared_ptr<HostWork>> works;
  };
  static std::mutex mutex;
  static auto& all = *new std::vector<Kept>;  // never destroyed: at the end of the process gloo may be gone
  const std::lock_guard lock(mutex);
  std::erase_if(all, [](const Kept& each) { return each.group.expired(); });
  if (!works.empty()) all.push_back({c10::weak_intrusive_ptr(group), std::move(works)});
}

GroupBackend::GroupBackend(c10::intrusive_ptr<c10d::ProcessGroup> group, int first_tag)
    : group_(std::move(group)), first_tag_(first_tag) {}

GroupBackend::~GroupBackend() { GroupBackend::close({}); }

void GroupBackend::begin(at::Device where) {
  std::string backend;
  try {
    backend = group_->getBackend(where.type())->getBackendName();
  } catch (const c10::Error& error) {
    throw InputError(fmt::format(
        "{} moves nothing that is on the {} ({}); make it with a backend for that, such as cpu:gloo,cuda:nccl",
        text_of(*group_), c10::DeviceTypeName(where.type(), true), reason_of(error)));
  }
  is_on_host_ = where.is_cpu();
  if (is_on_host_ && backend != "gloo") {
    throw InputError(fmt::format("{} moves what is on the host by {}, whose waits nobody can end; make it with gloo",
                                 text_of(*group_), backend));
  }
}

bool GroupBackend::is_ready(std::size_t /*stream*/) {
  const std::lock_guard lock(mutex_);
  return !is_cancelled_;
}

std::shared_ptr<OrderedBackend::Work> GroupBackend::put(std::size_t stream, std::span<const Transfer> transfers) {
  {
    const std::lock_guard lock(mutex_);
    if (is_cancelled_) return nullptr;
  }
  if (is_on_host_) return put_on_host(stream, transfers);
  put_on_device(transfers, transfers.front().tensor.device().type());
  return nullptr;
}

std::shared_ptr<OrderedBackend::Work> GroupBackend::put_on_host(std::size_t stream,
                                                                std::span<const Transfer> transfers) {
  const int tag = first_tag_ + static_cast<int>(stream);
  auto work = std::make_shared<HostWork>(transfers.size());
  std::deque<Sent> sent;
  // A Work that a profiler has seen begin tells it when it ends: here in another thread, perhaps after the profiler has
  // freed what it keeps of it.
  const at::RecordFunctionGuard unseen(/*is_enabled=*/false);
  for (std::size_t number = 0; number < transfers.size(); ++number) {
    const Transfer& each = transfers[number];
    std::vector<at::Tensor> tensors{each.tensor};
    try {
      work->start(number, each.is_send ? group_->send(tensors, each.peer, tag) : group_->recv(tensors, each.peer, tag),
                  text_of(each));
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex_);
      under_way_.push_back(work);  // those before this one have begun
      throw TransferError(fmt::format("{} failed: {}", text_of(each), reason_of(error)));
    }
    if (each.is_send) sent.emplace_back(work, number);
  }
  const std::lock_guard lock(mutex_);
  std::erase_if(under_way_, [](const auto& each) { return each->is_done(); });
  under_way_.push_back(work);
  if (is_cancelled_) work->cancel();
  unsent_ += sent.size();
  std::ranges::move(sent, std::back_inserter(sent_));
  if (!awaiting_.joinable()) {
    awaiting_ = std::thread([this] { await_sent(); });
    pthread_setname_np(awaiting_.native_handle(), "messages sent");
  }
  changed_.notify_all();
  return work;
}

void GroupBackend::put_on_device(std::span<const Transfer> transfers, at::DeviceType type) {
  try {
    group_->startCoalescing(type);
    for (const Transfer& each : transfers) {
      std::vector<at::Tensor> tensors{each.tensor};
      (void)(each.is_send ? group_->send(tensors, each.peer, 0) : group_->recv(tensors, each.peer, 0));
    }
    (void)group_->endCoalescing(type)->wait();  // the stream of the device does, and not this thread
  } catch (const std::exception& error) {
    throw TransferError(fmt::format("a group with {} failed: {}", text_of(transfers.front()), reason_of(error)));
  }
}

// What fails is told by check().
void GroupBackend::await_sent() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return !sent_.empty() || is_ending_; });
    if (sent_.empty()) return;
    const auto [work, number] = std::move(sent_.front());
    sent_.pop_front();
    lock.unlock();
    std::string failure;
    try {
      work->wait(number);
    } catch (const TransferError& error) {
      failure = error.what();
    }
    lock.lock();
    --unsent_;
    if (failure_.empty() && !is_cancelled_) failure_ = failure;
    changed_.notify_all();
  }
}

void GroupBackend::check() {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw TransferError(failure_);
}

// NCCL's, and with it the group, does not outlive this; gloo's does.
void GroupBackend::cancel() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(is_cancelled_, true)) return;
  for (const auto& each : under_way_) each->cancel();
  if (is_on_host_) return;
  try {
    group_->abort();
  } catch (const std::exception&) {  // it had failed already
  }
}

void GroupBackend::close(std::chrono::nanoseconds timeout) {
  {
    std::unique_lock lock(mutex_);
    is_ending_ = true;
    changed_.notify_all();
    (void)changed_.wait_for(lock, timeout, [&] { return is_cancelled_ || unsent_ == 0; });
    for (const auto& each : under_way_) each->cancel();
  }
  if (awaiting_.joinable()) awaiting_.join();
  std::erase_if(under_way_, [](const auto& each) { return each->is_done(); });
  keep_with(group_, std::exchange(under_way_, {}));
}

}  // namespace dualpipe::detail::transport
