#include "dualpipe/exec/transport/message_router.h"

#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <ranges>
#include <stdexcept>

#include "dualpipe/exec/transport/sums.h"
#include "dualpipe/exec/transport/tensor_spec.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {
namespace {

// To wake a sleeper takes longer than most messages do.
constexpr auto spin_time = std::chrono::microseconds(20);
// Between processes it takes longer still: a sleeper is woken by a thread that only looks now and then. Shorter than
// there and back, and two ranks that answer each other would both sleep each time, and never come out of it.
constexpr auto spin_time_with_link = std::chrono::microseconds(500);

// Until what this thread has put on a GPU is done: ranks have streams of their own, which know nothing of this one.
void wait_for_stream(const Tensors& tensors) {
  if (tensors.empty() || tensors.front().is_cpu()) return;
  const at::Device device = tensors.front().device();
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

std::string text_of(const Tensors& tensors) { return to_text(specs_of(tensors)); }

}  // namespace

// Of this run.
struct MessageRouter::Group {
  // A rank that holds some of the stages.
  struct Member {
    std::size_t stages = 0;
    std::vector<Tensors> brought;  // of this round
    MessageQueue sums;             // guarded by the rank's mailbox
  };

  explicit Group(const SumGroup& group_key) : key(group_key), parts(key.stages.size()) {}

  [[nodiscard]] std::size_t index_of(int stage) const {
    return static_cast<std::size_t>(std::ranges::find(key.stages, stage) - key.stages.begin());
  }

  const SumGroup key;
  std::map<int, Member> members;    // by rank; never changed, so that each rank may use its own
  std::vector<MessageQueue> parts;  // by index of the stage; guarded by the home's mailbox
};

MessageRouter::MessageRouter(const Placement& placement, const TransportOptions& options,
                             std::shared_ptr<AbortFlag> abort_flag, bool spins, RemoteLink* link)
    : placement_(placement),
      options_(options),
      abort_flag_(std::move(abort_flag)),
      link_(link),
      spins_(spins),
      queues_(2 * placement.rank_of.size()),
      mailboxes_(static_cast<std::size_t>(placement.ranks)) {
  if (link_ != nullptr) progress_ = [this] { link_->progress(); };
  for (int rank = 0; rank < placement.ranks; ++rank) first_stages_.push_back(placement.stages_on(rank).front());
}

MessageRouter::~MessageRouter() = default;

MessageQueue& MessageRouter::queue_of(Op receive) {
  return queues_[2 * static_cast<std::size_t>(receive.stage) + (receive.kind == Kind::receive_forward ? 0 : 1)];
}

Waiting MessageRouter::waiting() const {
  const std::chrono::nanoseconds spin = link_ == nullptr ? spin_time : spin_time_with_link;
  return {Clock::now() + options_.timeout, *abort_flag_, spins_ ? spin : std::chrono::nanoseconds(0), progress_};
}

// --- messages

void MessageRouter::send(Op message, Tensors tensors, const Event& ready) {
  abort_flag_->throw_if_aborted();
  const Op receive = peer_of(message, placement_);
  const int to = rank_of(receive.stage);
  const auto now = Clock::now();
  if (!are_apart(rank_of(message.stage), to)) {
    return mailbox_of(to).put(queue_of(receive), {receive.micro_batch, std::move(tensors),
                                                  now + options_.delay(rank_of(message.stage), to), ready});
  }
  link_->send(to, {.receive = receive, .rank = to, .sent = now, .tensors = std::move(tensors)});
}

std::optional<Received> MessageRouter::wait_for(Op message, std::chrono::nanoseconds patience) {
  const RemoteLink::Watch watch(link_);
  Waiting waits = waiting();
  waits.deadline = Clock::now() + patience;
  auto taken = mailbox_of(rank_of(message.stage)).take(queue_of(message), message.micro_batch, waits);
  if (!taken) return std::nullopt;
  return Received{std::move(taken->tensors), taken->arrived, taken->ready};
}

Received MessageRouter::wait(Op message) {
  if (auto received = wait_for(message, options_.timeout)) return std::move(*received);
  throw TimeoutError(fmt::format("nothing came from rank {} for {} within {}",
                                 rank_of(peer_of(message, placement_).stage), to_text(message),
                                 seconds(options_.timeout)));
}

// --- sums

// Made when somebody first comes to it.
MessageRouter::Group& MessageRouter::group_of(const SumGroup& key) {
  const std::lock_guard lock(groups_mutex_);
  std::unique_ptr<Group>& group = groups_[key];
  if (!group) {
    group = std::make_unique<Group>(key);
    for (const int stage : key.stages) ++group->members[rank_of(stage)].stages;
  }
  return *group;
}

void MessageRouter::reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) {
  if (stages.size() == 1) return;
  Group& group = group_of({false, {stages.begin(), stages.end()}});
  Group::Member& member = group.members.at(rank_of(stage));
  member.brought.emplace_back(tensors.begin(), tensors.end());
  const auto sums = bring(group, group.index_of(stage), member.brought.back());
  if (!sums) return;
  const c10::NoGradGuard no_grad;
  for (const Tensors& each : std::exchange(member.brought, {})) {
    for (std::size_t k = 0; k < sums->size(); ++k) each[k].copy_((*sums)[k]);
  }
  wait_for_stream(*sums);  // they may go as soon as the last rank has let go
}

double MessageRouter::sum(int rank, double value) {
  Group& group = group_of({true, first_stages_});
  Group::Member& member = group.members.at(rank);
  member.brought.push_back({at::full({1}, value, at::kDouble)});
  const auto sums = bring(group, static_cast<std::size_t>(rank), member.brought.back());
  member.brought.clear();
  return sums->front().item<double>();
}

// Nothing as long as the rank has more stages to bring.
std::optional<Tensors> MessageRouter::bring(Group& group, std::size_t index, const Tensors& own) {
  abort_flag_->throw_if_aborted();
  const int rank = rank_of(group.key.stages[index]);
  const int home = rank_of(group.key.stages.front());
  Group::Member& member = group.members.at(rank);
  if (are_apart(rank, home)) {
    link_->send(home, {.kind = WireMessage::Kind::part,
                       .rank = rank,
                       .index = static_cast<std::int32_t>(index),
                       .sent = Clock::now(),
                       .group = group.key,
                       .tensors = own});
  } else {
    mailbox_of(home).put(group.parts[index], {0, own, Clock::now()});
  }
  if (member.brought.size() < member.stages) return std::nullopt;
  return rank == home ? add_up(group) : await_sums(group, rank, own);
}

// On the home: in the order of the stages, whoever comes last.
Tensors MessageRouter::add_up(Group& group) {
  const int home = rank_of(group.key.stages.front());
  const RemoteLink::Watch watch(link_);
  const auto parts = mailbox_of(home).take_all(group.parts, waiting());
  if (!parts) throw TimeoutError(absent(group, home));
  for (std::size_t i = 1; i < parts->size(); ++i) check_alike(group, parts->front(), i, (*parts)[i]);
  Tensors sums = sums_of(*parts);
  wait_for_stream(sums);
  for (auto& [rank, member] : group.members) {
    if (rank == home) continue;
    if (are_apart(rank, home)) {
      link_->send(
          rank,
          {.kind = WireMessage::Kind::sums, .rank = rank, .sent = Clock::now(), .group = group.key, .tensors = sums});
    } else {
      mailbox_of(rank).put(member.sums, {0, sums, Clock::now()});
    }
  }
  return sums;
}

Tensors MessageRouter::await_sums(Group& group, int rank, const Tensors& own) {
  Group::Member& member = group.members.at(rank);
  const RemoteLink::Watch watch(link_);
  auto taken = mailbox_of(rank).take(member.sums, 0, waiting());
  if (!taken) throw TimeoutError(absent(group, rank));
  if (!are_like(own, specs_of(taken->tensors))) {
    throw TransportError(
        fmt::format("rank {} made {} of {}", rank_of(group.key.stages.front()), text_of(taken->tensors), text_of(own)));
  }
  return std::move(taken->tensors);
}

void MessageRouter::check_alike(const Group& group, const Tensors& first, std::size_t index,
                                const Tensors& other) const {
  if (are_like(first, specs_of(other))) return;
  throw std::runtime_error(fmt::format("gradients to be summed are unlike: {} has {}; {} has {}", side(group, 0),
                                       text_of(first), side(group, index), text_of(other)));
}

std::string MessageRouter::side(const Group& group, std::size_t index) const {
  const int stage = group.key.stages[index];
  return fmt::format("stage {} (rank {})", stage, rank_of(stage));
}

// What this rank has waited for.
std::string MessageRouter::absent(Group& group, int rank) {
  const int home = rank_of(group.key.stages.front());
  if (are_apart(rank, home)) {
    return fmt::format("waited {} for rank {}, which adds up {} of {}", seconds(options_.timeout), home,
                       group.key.is_sum ? "the values" : "the gradients",
                       group.key.is_sum ? "all ranks" : fmt::format("stages {}", fmt::join(group.key.stages, ", ")));
  }
  const std::vector<std::size_t> missing = mailbox_of(home).empty_ones(group.parts);
  if (group.key.is_sum) {  // one stage for each rank
    return fmt::format("rank {} waited {} to add up a value of all ranks; not there: rank {}", rank,
                       seconds(options_.timeout), fmt::join(missing, ", "));
  }
  std::vector<std::string> sides;
  for (const std::size_t i : missing) sides.push_back(side(group, i));
  return fmt::format("waited {} for the gradients of {}", seconds(options_.timeout), fmt::join(sides, ", "));
}

// --- from other processes

// Whether there is such a RECV op: all of them receive from a neighbour in the chain.
bool MessageRouter::is_of_message(Op receive) const {
  if (receive.stage >= placement_.stages() || receive.micro_batch >= micro_batch_count_max) return false;
  if (receive.kind == Kind::receive_forward) return placement_.previous(receive.stage).has_value();
  return receive.kind == Kind::receive_backward && placement_.next(receive.stage).has_value();
}

MessageRouter::Route MessageRouter::route_of(const WireMessage& message) const {
  if (message.kind != WireMessage::Kind::message) return route_of_sum(message);
  const Op receive = message.receive;
  if (!is_of_message(receive)) {
    throw std::runtime_error(fmt::format("a message for micro-batch {} of stage {} and op kind {}, which no rank runs",
                                         receive.micro_batch, receive.stage, static_cast<int>(receive.kind)));
  }
  const int to = rank_of(receive.stage);
  if (message.rank != to) {
    throw std::runtime_error(
        fmt::format("a message for {} on rank {}; it is on rank {}", to_text(receive), message.rank, to));
  }
  return {rank_of(peer_of(receive, placement_).stage), to};
}

MessageRouter::Route MessageRouter::route_of_sum(const WireMessage& message) const {
  const std::vector<int>& stages = message.group.stages;
  const bool is_group = message.group.is_sum
                            ? stages == first_stages_
                            : stages.size() > 1 && stages.front() >= 0 && stages.back() < placement_.stages() &&
                                  std::ranges::adjacent_find(stages, std::ranges::greater_equal()) == stages.end();
  if (!is_group) {
    throw std::runtime_error(fmt::format("sums over stages {}, which are no group", fmt::join(stages, ", ")));
  }
  const int home = rank_of(stages.front());
  const auto is_on = [&](int stage) { return rank_of(stage) == message.rank; };
  const auto index = static_cast<std::size_t>(message.index);
  if (message.kind == WireMessage::Kind::part && index < stages.size() && is_on(stages[index])) {
    return {message.rank, home};
  }
  if (message.kind == WireMessage::Kind::sums && std::ranges::any_of(stages, is_on)) return {home, message.rank};
  throw std::runtime_error(fmt::format("sums over stages {}, and among these number {} of rank {}, which it is not",
                                       fmt::join(stages, ", "), message.index, message.rank));
}

void MessageRouter::deliver(WireMessage message) {
  if (message.kind == WireMessage::Kind::message) {
    const auto [from, to] = route_of(message);
    const auto arrived = std::max(Clock::now(), message.sent + options_.delay(from, to));
    return mailbox_of(message.rank)
        .put(queue_of(message.receive), {message.receive.micro_batch, std::move(message.tensors), arrived});
  }
  Group& group = group_of(message.group);
  if (message.kind == WireMessage::Kind::sums) {
    return mailbox_of(message.rank)
        .put(group.members.at(message.rank).sums, {0, std::move(message.tensors), Clock::now()});
  }
  const auto index = static_cast<std::size_t>(message.index);
  if (!mailbox_of(rank_of(group.key.stages.front()))
           .put_only(group.parts[index], {0, std::move(message.tensors), Clock::now()})) {
    throw std::runtime_error(fmt::format("what {} brings to the sum over stages {}, twice", side(group, index),
                                         fmt::join(group.key.stages, ", ")));
  }
}

// --- the end

void MessageRouter::abort(const std::string& reason) {
  if (!abort_flag_->abort(reason)) return;
  wake();
  if (link_ != nullptr) link_->abort(reason);
}

void MessageRouter::wake() {
  for (Mailbox& each : mailboxes_) each.wake();
}

namespace {

class RankTransport final : public Transport {
 public:
  RankTransport(std::shared_ptr<MessageRouter> router, int rank) : router_(std::move(router)), rank_(rank) {}

  void begin(const Program& /*program*/, Device& /*device*/) override {}  // any order will do
  void end_batch() override {}
  void confirm() override {}
  void send(Op message, Tensors tensors, const Event& ready) override {
    router_->send(message, std::move(tensors), ready);
  }
  void post_receive(Op) override {}  // what comes is taken in anyway
  [[nodiscard]] Received wait(Op message) override { return router_->wait(message); }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    router_->reduce(stages, stage, tensors);
  }
  [[nodiscard]] double sum(double value) override { return router_->sum(rank_, value); }
  void abort(const std::string& reason) override { router_->abort(reason); }

 private:
  std::shared_ptr<MessageRouter> router_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> transports_of(std::shared_ptr<MessageRouter> router, int ranks,
                                                      std::span<const int> here) {
  std::vector<std::unique_ptr<Transport>> transports(static_cast<std::size_t>(ranks));
  for (const int rank : here) {
    transports[static_cast<std::size_t>(rank)] = std::make_unique<RankTransport>(router, rank);
  }
  return transports;
}

}  // namespace dualpipe::detail::transport
