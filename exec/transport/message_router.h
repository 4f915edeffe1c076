// Where the ranks of one process hand tensors to each other, and to ranks of other processes. Private to
// exec/transport.
//
//     rank 0 ──send──▶ MessageRouter ─────▶ mailbox of rank 1 ──wait──▶ rank 1       in this process: the tensor itself
//                         │ ▲
//                         ▼ │ deliver
//                      RemoteLink ⇄ MessageRouters of other processes                its bytes
//
// What ranks reduce goes to the rank that holds the first stage of the group, its home. That adds it up, in the order
// of the stages, and sends each of the others the sums:
//
//     stages 1, 5, 6    rank 1 (stage 1)  ◀─part 5─ rank 2          rank 1 ──sums──▶ rank 2
//                                         ◀─part 6─ rank 3                 ──sums──▶ rank 3
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/exec/transport/wire_message.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::transport {

class MessageRouter {
 public:
  // `spins`: each rank has a core to itself, and may wait for a message in a loop. `link`: the way to ranks of other
  // processes, which also delivers what comes from them; null if all ranks are here.
  MessageRouter(const Placement& placement, const TransportOptions& options, std::shared_ptr<AbortFlag> abort_flag,
                bool spins, RemoteLink* link);
  ~MessageRouter();
  MessageRouter(const MessageRouter&) = delete;
  MessageRouter& operator=(const MessageRouter&) = delete;

  void send(Op message, Tensors tensors, const Event& ready);
  [[nodiscard]] Received wait(Op message);
  // Nothing if it did not come within `patience`; it can be waited for again.
  [[nodiscard]] std::optional<Received> wait_for(Op message, std::chrono::nanoseconds patience);
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors);
  [[nodiscard]] double sum(int rank, double value);
  void abort(const std::string& reason);

  // For the link: between which ranks a message goes, and the delivery of one. Both throw std::runtime_error, which
  // says what the message is, where no rank of this run would have sent it.
  struct Route {
    int from = 0;
    int to = 0;
  };
  [[nodiscard]] Route route_of(const WireMessage& message) const;
  // Only of a message that has a route.
  void deliver(WireMessage message);
  [[nodiscard]] int ranks() const { return placement_.ranks; }
  // Wakes all who wait, after the flag has been set because another process has aborted the run.
  void wake();

 private:
  struct Group;

  [[nodiscard]] bool is_of_message(Op receive) const;
  [[nodiscard]] Route route_of_sum(const WireMessage& message) const;
  [[nodiscard]] int rank_of(int stage) const { return placement_.rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] Mailbox& mailbox_of(int rank) { return mailboxes_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] MessageQueue& queue_of(Op receive);
  [[nodiscard]] bool are_apart(int rank, int other) const { return link_ != nullptr && link_->are_apart(rank, other); }
  [[nodiscard]] Waiting waiting() const;

  [[nodiscard]] Group& group_of(const SumGroup& key);
  [[nodiscard]] std::optional<Tensors> bring(Group& group, std::size_t index, const Tensors& own);
  [[nodiscard]] Tensors add_up(Group& group);
  [[nodiscard]] Tensors await_sums(Group& group, int rank, const Tensors& own);
  void check_alike(const Group& group, const Tensors& first, std::size_t index, const Tensors& other) const;
  [[nodiscard]] std::string side(const Group& group, std::size_t index) const;
  [[nodiscard]] std::string absent(Group& group, int rank);

  Placement placement_;
  TransportOptions options_;
  std::shared_ptr<AbortFlag> abort_flag_;
  RemoteLink* link_;
  std::function<void()> progress_;
  bool spins_;
  std::vector<MessageQueue> queues_;  // of each stage, for its input and for the gradient of its output
  std::vector<Mailbox> mailboxes_;    // by rank
  std::vector<int> first_stages_;     // by rank
  std::mutex groups_mutex_;
  std::map<SumGroup, std::unique_ptr<Group>> groups_;
};

// The transports of these ranks, by rank; null for the others.
[[nodiscard]] std::vector<std::unique_ptr<Transport>> transports_of(std::shared_ptr<MessageRouter> router, int ranks,
                                                                    std::span<const int> here);

}  // namespace dualpipe::detail::transport
