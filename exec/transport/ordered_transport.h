// Ranks in processes of their own, whose messages are matched by their order: over NCCL, or over a process group.
// Private to exec/transport.
//
//     thread of the rank   0F2 │ send, post_receive, end_batch │ 0B1 …           ahead of its GPU
//     compute stream       ▐███ 0F2 ███▌event─┐           ┌───▶▐██ 0B1 ██▌
//     message stream 0                        └▶▐ group of SEND_F ▌              activations
//     message stream 1               ▐ group of RECV_B ▌event─┘                  gradients
//
// 1. A batch of the Program is a group for each stream. It starts when its slot is reached, not before: a group that
//    waits for its peer occupies multiprocessors. Where the backend has two streams each direction has one of its own,
//    so that an activation that is late holds up no gradient.
// 2. Both ends have to issue the messages of a stream in the same order, and no batch may wait for another in a circle:
//    that is checked before a program first runs.
// 3. A receiver has to know the shapes and types of a message before it comes. So the sender of the first message of
//    each boundary and direction tells them, through the MessageRouter, when its thread comes to the send. The
//    receiver's thread waits for that in its slot. In a lowered program (sim/schedule/lower.h) the send depends on
//    nothing that the receiver does later; it may only depend on what the receiver sends in that same slot.
// 4. A thread watches for errors of the backend, for a group that does not end within the timeout after its start, and
//    for a run that another rank has aborted. Then it aborts the backend, which ends all groups that are under way.
// 5. On the host no stream can tell when a group is done. There a group starts when the rank's thread waits for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/boundary_specs.h"
#include "dualpipe/exec/transport/message_order.h"
#include "dualpipe/exec/transport/message_router.h"
#include "dualpipe/exec/transport/ordered_backend.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {

class OrderedTransport final : public Transport {
 public:
  // `router`: of this run, for what is not a message; `abort_flag`: the router's.
  OrderedTransport(std::unique_ptr<OrderedBackend> backend, const Placement& placement, int rank,
                   const TransportOptions& options, std::shared_ptr<MessageRouter> router,
                   std::shared_ptr<AbortFlag> abort_flag);
  ~OrderedTransport() override;

  void expect(const MessageForms& forms) override;
  void begin(const Program& program, Device& device) override;
  void send(Op message, Tensors tensors, const Event& ready) override;
  void post_receive(Op message) override;
  void end_batch() override;
  [[nodiscard]] Received wait(Op message) override;
  void confirm() override;
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override;
  [[nodiscard]] double sum(double value) override;
  void abort(const std::string& reason) override;

 private:
  static constexpr std::size_t activations = 0;
  static constexpr std::size_t gradients = 1;

  struct Message {
    Op op;            // a send or a receive
    Tensors tensors;  // of a receive: once their specs are known
    Event ready{};    // of a send
  };
  using Messages = std::vector<Message>;
  // What has been put on a stream together.
  struct Group {
    std::vector<Transfer> transfers;  // held until it is done
    Event started{};
    Event done{};
    std::shared_ptr<OrderedBackend::Work> work{};  // null: `done` tells
    std::optional<Clock::time_point> start_seen{};
  };
  using Groups = std::deque<std::shared_ptr<Group>>;
  struct Arrival {
    Tensors tensors;
    std::shared_ptr<Group> group{};
    std::size_t first = 0;  // of its transfers in the group
    std::size_t count = 0;
  };
  // Stages whose gradients are summed.
  struct Sum {
    std::map<int, Tensors> brought;  // in this round, by stage of this rank
    bool is_agreed = false;
  };

  [[nodiscard]] int rank_of(int stage) const { return placement_.rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] int peer_rank(Op message) const;

  [[nodiscard]] std::size_t stream_of(Kind kind) const { return direction_of(kind) % streams_; }

  void connect();
  void meet_neighbours(std::size_t stream);

  [[nodiscard]] bool is_known(Op message) const;
  void learn(Op receive);
  [[nodiscard]] bool learn(Op receive, std::chrono::nanoseconds patience);
  void note(Op receive, const Received& herald);
  void issue_messages(std::size_t stream, Messages messages, const Event& reached);
  void issue_first(std::size_t stream, Messages messages, const Event& reached);
  [[nodiscard]] std::shared_ptr<Group> issue(std::size_t stream, std::vector<Transfer> transfers,
                                             std::span<const Event> after);
  void await_ready(std::size_t stream, const char* what);
  void await(Group& group);
  void await(Group& group, std::size_t first, std::size_t count);

  [[nodiscard]] std::map<int, Tensors> exchange(std::span<const int> stages, const Sum& sum);
  void agree(std::span<const int> stages, Sum& sum);

  void throw_if_aborted();
  void cancel_backend();
  [[nodiscard]] bool is_done(const Group& group) const;
  void release_done();
  void watch(const std::stop_token& ended);
  [[nodiscard]] std::string trouble();
  [[nodiscard]] bool is_overdue(Group& group) const;
  [[nodiscard]] std::string overdue(const Group& group) const;

  std::unique_ptr<OrderedBackend> backend_;
  Placement placement_;
  int rank_;
  TransportOptions options_;
  std::shared_ptr<MessageRouter> router_;
  std::shared_ptr<AbortFlag> abort_flag_;

  // --- of the rank's thread
  bool is_connected_ = false;  // or was, before an abort
  std::size_t streams_ = 0;
  std::map<std::uint64_t, BoundarySpecs> specs_;  // by the forms' id; one at least
  BoundarySpecs* in_use_ = nullptr;               // of these
  std::vector<Program> checked_;
  Messages batch_;  // that is being put together
  std::map<Op, Arrival> arrivals_;
  std::map<std::vector<int>, Sum> sums_;

  std::mutex mutex_;  // of what follows
  // Set by the rank's thread, which alone reads it without the mutex.
  Device* device_ = nullptr;
  std::array<Groups, 2> under_way_;  // by stream
  Groups abandoned_;                 // what they hold may still be written to
  bool is_aborted_ = false;

  std::condition_variable_any nothing_;  // the watchdog sleeps on it, until it is to end
  std::jthread watchdog_;
};

}  // namespace dualpipe::detail::transport
