#include "tests/exec/group_double.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "tests/exec/worlds.h"

namespace dualpipe::test {

struct GroupDouble::Message {
  Way way;
  at::Tensor tensor;
  bool is_send = false;
  bool is_done = false;
  bool is_aborted = false;
  bool was_awaited = false;
  std::string failure{};
};

class GroupDouble::Work final : public c10d::Work {
 public:
  Work(GroupDouble& network, std::shared_ptr<Message> message)
      : network_(network), works_(network.works_), message_(std::move(message)) {
    ++*works_;
  }
  ~Work() override { --*works_; }

  bool wait(std::chrono::milliseconds timeout) override {
    bool is_done = false;
    std::exception_ptr failure;
    try {
      is_done = network_.wait(*message_, timeout);
    } catch (...) {
      failure = std::current_exception();
    }
    finishAndThrow(failure);
    return is_done;
  }
  void abort() override {
    {
      const std::lock_guard lock(network_.mutex_);
      message_->is_aborted = true;
    }
    network_.changed_.notify_all();
  }

 private:
  GroupDouble& network_;
  std::shared_ptr<std::atomic<int>> works_;
  std::shared_ptr<Message> message_;
};

class GroupDouble::Backend final : public c10d::Backend {
 public:
  Backend(GroupDouble& network, int rank) : c10d::Backend(rank, network.ranks()), network_(network) {}

  const std::string getBackendName() const override { return network_.backend_; }
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int peer, int tag) override {
    return network_.post(getRank(), peer, tag, tensors.at(0), true);
  }
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int peer, int tag) override {
    return network_.post(peer, getRank(), tag, tensors.at(0), false);
  }

 private:
  GroupDouble& network_;
};

GroupDouble::GroupDouble(int ranks, std::string backend)
    : ranks_(ranks), backend_(std::move(backend)), store_(c10::make_intrusive<c10d::HashStore>()) {}

c10::intrusive_ptr<c10d::ProcessGroup> GroupDouble::group(int rank) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store_, rank, ranks_);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM,
                    c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<Backend>(*this, rank)));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  group->setGroupName("pipeline");
  return group;
}

c10::intrusive_ptr<c10d::Work> GroupDouble::post(int from, int to, int tag, at::Tensor tensor, bool is_send) {
  constexpr unsigned char garbage = 0xFF;
  if (!is_send) std::memset(tensor.mutable_data_ptr(), garbage, tensor.nbytes());
  const Way way{from, to, tag};
  const auto message = std::make_shared<Message>(Message{way, std::move(tensor), is_send});
  {
    const std::lock_guard lock(mutex_);
    if (lost_.contains(is_send ? from : to)) return c10::make_intrusive<Work>(*this, message);
    if (const auto found = closed_.find({from, to}); found != closed_.end()) throw std::runtime_error(found->second);
    const std::size_t bytes = message->tensor.nbytes();
    calls_[is_send ? from : to].push_back(is_send ? fmt::format("send {} to {}", bytes, to)
                                                  : fmt::format("receive {} from {}", bytes, from));
    (is_send ? sends_ : receives_)[way].push_back(message);
    match(way);
  }
  changed_.notify_all();
  return c10::make_intrusive<Work>(*this, message);
}

void GroupDouble::match(const Way& way) {
  auto& sends = sends_[way];
  auto& receives = receives_[way];
  while (!sends.empty() && !receives.empty()) {
    const std::size_t bytes = sends.front()->tensor.nbytes();
    if (bytes != receives.front()->tensor.nbytes()) {
      misuse_.push_back(fmt::format("{} bytes are sent, and {} received", bytes, receives.front()->tensor.nbytes()));
    }
    std::memcpy(receives.front()->tensor.mutable_data_ptr(), sends.front()->tensor.const_data_ptr(),
                std::min(bytes, receives.front()->tensor.nbytes()));
    sends.front()->is_done = receives.front()->is_done = true;
    sends.pop_front();
    receives.pop_front();
  }
}

void GroupDouble::close(int rank, int peer, const std::string& reason) {
  for (const auto& ends : {std::pair(rank, peer), std::pair(peer, rank)}) {
    closed_[ends] = reason;
    for (auto* const queues : {&sends_, &receives_}) {
      for (auto& [way, messages] : *queues) {
        if (std::get<0>(way) != ends.first || std::get<1>(way) != ends.second) continue;
        for (const auto& each : messages) {
          if (!lost_.contains(each->is_send ? ends.first : ends.second)) each->failure = reason;
        }
        messages.clear();
      }
    }
  }
  changed_.notify_all();
}

bool GroupDouble::wait(Message& message, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto& [from, to, tag] = message.way;
  if (std::exchange(message.was_awaited, true)) {
    misuse_.push_back(fmt::format("a second wait for one message from {} to {}", from, to));
  }
  const auto is_over = [&] { return message.is_done || message.is_aborted || !message.failure.empty(); };
  if (!changed_.wait_for(lock, timeout, is_over)) {
    misuse_.push_back(fmt::format("a wait for a message from {} to {} that expires", from, to));
    close(from, to, fmt::format("Timed out waiting {}ms for an operation to complete", timeout.count()));
  }
  if (message.is_aborted) return message.is_aborted = false;
  if (!message.failure.empty()) throw std::runtime_error(message.failure);
  return true;
}

void GroupDouble::lose(int rank) {
  const std::lock_guard lock(mutex_);
  lost_.insert(rank);
  for (int peer = 0; peer < ranks_; ++peer) close(rank, peer, fmt::format("Connection closed by peer {}", rank));
}

std::vector<std::string> GroupDouble::calls(int rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(rank);
  return found == calls_.end() ? std::vector<std::string>() : found->second;
}

std::vector<std::string> GroupDouble::misuse() const {
  const std::lock_guard lock(mutex_);
  return misuse_;
}

std::vector<std::string> in_group(GroupDouble& group, const std::function<void(World& world)>& run,
                                  const StoreOptions& options) {
  return in_processes(
      group.ranks(), [&](int process) { return process_group(group.group(process), options); }, run);
}

}  // namespace dualpipe::test
