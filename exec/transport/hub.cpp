#include "dualpipe/exec/transport/hub.h"

#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <ranges>
#include <stdexcept>
#include <thread>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/sums.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {
namespace {

// To wake a sleeper takes longer than most messages do.
constexpr auto spin_time = std::chrono::microseconds(20);
// Between processes it takes longer still: a sleeper is woken by a thread that only looks now and then. Shorter than
// there and back, and two ranks that answer each other would both sleep each time, and never come out of it.
constexpr auto spin_time_with_wire = std::chrono::microseconds(500);

// Until what this thread has put on a GPU is done: ranks have streams of their own, which know nothing of this one.
void wait_for_stream(at::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

std::string text_of(const Tensors& tensors) { return to_text(forms_of(tensors)); }

bool are_alike(const Tensors& some, const Tensors& others) {
  return std::ranges::equal(some, others, [](const at::Tensor& a, const at::Tensor& b) {
    return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type();
  });
}

}  // namespace

// Stages whose tensors are summed, in this order.
struct Hub::Group {
  // A rank that holds some of the stages.
  struct Member {
    std::size_t stages = 0;
    std::vector<Tensors> brought;  // of this round, and what still is on its way to the meeting
    std::vector<Departed> departures;
    Box sums;  // guarded by the rank's mailbox
  };

  explicit Group(const GroupKey& group_key) : key(group_key), meeting(stages().size()) {}

  [[nodiscard]] const std::vector<int>& stages() const { return key.second; }
  [[nodiscard]] std::size_t index_of(int stage) const {
    return static_cast<std::size_t>(std::ranges::find(stages(), stage) - stages().begin());
  }
  [[nodiscard]] std::string note_of(const Tensors& tensors) const {
    return pack({key.first, key.second, dualpipe::detail::transport::forms_of(tensors)});
  }

  GroupKey key;
  std::map<int, Member> members;  // by rank; never changed, so that each rank may use its own
  Meeting<Tensors, Tensors> meeting;
};

Hub::Hub(const Placement& placement, const TransportOptions& options, std::shared_ptr<Verdict> verdict, bool spins,
         Wire* wire)
    : placement_(placement),
      options_(options),
      verdict_(std::move(verdict)),
      wire_(wire),
      spins_(spins),
      agreement_(placement_),
      boxes_(2 * placement.rank_of.size()),
      mailboxes_(static_cast<std::size_t>(placement.ranks)) {
  if (wire_ != nullptr) progress_ = [this] { wire_->progress(); };
  for (int rank = 0; rank < placement.ranks; ++rank) first_stages_.push_back(placement.stages_on(rank).front());
}

Hub::~Hub() = default;

Box& Hub::box_of(Op receive) {
  return boxes_[2 * static_cast<std::size_t>(receive.stage) + (receive.kind == Kind::receive_forward ? 0 : 1)];
}

Waiting Hub::waiting() const {
  const std::chrono::nanoseconds spin = wire_ == nullptr ? spin_time : spin_time_with_wire;
  return {Clock::now() + options_.timeout, *verdict_, spins_ ? spin : std::chrono::nanoseconds(0), progress_};
}

// --- messages

void Hub::send(Op message, Tensors tensors, const Mark& ready) {
  verdict_->throw_if_aborted();
  const bool is_first = agreement_.check(message, tensors);
  const Op receive = peer_of(message, placement_);
  const int to = rank_of(receive.stage);
  const auto now = Clock::now();
  if (!apart(rank_of(message.stage), to)) {
    return mailbox_of(to).put(box_of(receive),
                              {receive.micro_batch, std::move(tensors), now + options_.link_delay, ready});
  }
  Parcel parcel{.receive = receive, .rank = to, .sent = now, .content = std::move(tensors)};
  if (is_first) parcel.note = pack({.forms = dualpipe::detail::transport::forms_of(parcel.content)});
  (void)wire_->send(to, std::move(parcel));
}

std::optional<Received> Hub::wait_for(Op message, std::chrono::nanoseconds patience) {
  const Wire::Watch watch(wire_);
  Waiting waits = waiting();
  waits.deadline = Clock::now() + patience;
  auto letter = mailbox_of(rank_of(message.stage)).take(box_of(message), message.micro_batch, waits);
  if (!letter) return std::nullopt;
  return Received{std::move(letter->content), letter->arrived, letter->ready};
}

Received Hub::wait(Op message) {
  if (auto received = wait_for(message, options_.timeout)) return std::move(*received);
  throw TimeoutError(fmt::format("nothing came from rank {} for {} within {}",
                                 rank_of(peer_of(message, placement_).stage), to_text(message),
                                 seconds(options_.timeout)));
}

// --- sums

// Made when somebody first comes to it.
Hub::Group& Hub::group_of(const GroupKey& key) {
  const std::lock_guard lock(groups_mutex_);
  std::unique_ptr<Group>& group = groups_[key];
  if (!group) {
    group = std::make_unique<Group>(key);
    for (const int stage : group->stages()) ++group->members[rank_of(stage)].stages;
  }
  return *group;
}

void Hub::reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) {
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
  if (!sums->empty()) wait_for_stream(sums->front().device());  // they may go as soon as the last rank has let go
}

double Hub::sum(int rank, double value) {
  Group& group = group_of({true, first_stages_});
  group.members.at(rank).brought.push_back({at::full({1}, value, at::kDouble)});
  const auto sums = bring(group, static_cast<std::size_t>(rank), group.members.at(rank).brought.back());
  group.members.at(rank).brought.clear();
  return sums->front().item<double>();
}

// Nothing as long as the rank has more stages to bring.
std::optional<Tensors> Hub::bring(Group& group, std::size_t index, const Tensors& own) {
  const int rank = rank_of(group.stages()[index]);
  if (apart(rank, rank_of(group.stages().front()))) return sums_from_afar(group, index, own);
  Group::Member& member = group.members.at(rank);
  if (member.brought.size() < member.stages) {
    (void)group.meeting.leave(index, own);
    return std::nullopt;
  }
  bool adds = false;
  const Wire::Watch watch(wire_);
  auto sums = group.meeting.meet(index, own, waiting(), [&](const auto& parts) {
    adds = true;
    return add(group, parts);
  });
  if (!sums) throw TimeoutError(absent(group, rank));
  if (adds) send_sums(group, *sums);
  return sums;
}

std::optional<Tensors> Hub::sums_from_afar(Group& group, std::size_t index, const Tensors& own) {
  const int rank = rank_of(group.stages()[index]);
  const int home = rank_of(group.stages().front());
  Group::Member& member = group.members.at(rank);
  member.departures.push_back(wire_->send(home, {.kind = Parcel::Kind::part,
                                                 .rank = rank,
                                                 .index = static_cast<std::int32_t>(index),
                                                 .sent = Clock::now(),
                                                 .note = group.note_of(own),
                                                 .content = own}));
  if (member.brought.size() < member.stages) return std::nullopt;
  const Wire::Watch watch(wire_);
  auto letter = mailbox_of(rank).take(member.sums, 0, waiting());
  if (!letter) {
    throw TimeoutError(
        fmt::format("waited {} for rank {}, which adds up {} of {}", seconds(options_.timeout), home,
                    group.key.first ? "the values" : "the gradients",
                    group.key.first ? "all ranks" : fmt::format("stages {}", fmt::join(group.stages(), ", "))));
  }
  if (!are_alike(letter->content, own)) {
    throw TransportError(fmt::format("rank {} made {} of {}", home, text_of(letter->content), text_of(own)));
  }
  // They have arrived, or there would be no sums; only this end may not have been told.
  for (const auto& departed : std::exchange(member.departures, {})) {
    while (!departed->load(std::memory_order_acquire)) {
      verdict_->throw_if_aborted();
      progress_();
      std::this_thread::yield();
    }
  }
  return std::move(letter->content);
}

void Hub::send_sums(const Group& group, const Tensors& sums) {
  const int home = rank_of(group.stages().front());
  for (const auto& [rank, member] : group.members) {
    if (!apart(rank, home)) continue;
    (void)wire_->send(
        rank,
        {.kind = Parcel::Kind::sums, .rank = rank, .sent = Clock::now(), .note = group.note_of(sums), .content = sums});
  }
}

// In the order of the stages, whoever comes last.
Tensors Hub::add(const Group& group, const std::vector<std::optional<Tensors>>& parts) const {
  for (std::size_t i = 1; i < parts.size(); ++i) check_alike(group, *parts[0], i, *parts[i]);
  Tensors sums = sums_of(parts | std::views::transform([](const auto& part) -> const Tensors& { return *part; }));
  if (!sums.empty()) wait_for_stream(sums[0].device());
  return sums;
}

void Hub::check_alike(const Group& group, const Tensors& first, std::size_t index, const Tensors& other) const {
  if (are_alike(first, other)) return;
  throw std::runtime_error(fmt::format("gradients to be summed are unlike: {} has {}; {} has {}", side(group, 0),
                                       text_of(first), side(group, index), text_of(other)));
}

std::string Hub::side(const Group& group, std::size_t index) const {
  const int stage = group.stages()[index];
  return fmt::format("stage {} (rank {})", stage, rank_of(stage));
}

std::string Hub::absent(const Group& group, int rank) const {
  const std::vector<std::size_t> missing = group.meeting.missing();
  if (group.key.first) {  // one stage for each rank
    return fmt::format("rank {} waited {} to add up a value of all ranks; not there: rank {}", rank,
                       seconds(options_.timeout), fmt::join(missing, ", "));
  }
  std::vector<std::string> sides;
  for (const std::size_t i : missing) sides.push_back(side(group, i));
  return fmt::format("waited {} for the gradients of {}", seconds(options_.timeout), fmt::join(sides, ", "));
}

// --- from other processes

// Whether there is such a RECV op: all of them receive from a neighbour in the chain.
bool Hub::is_of_message(Op receive) const {
  if (receive.stage >= placement_.stages() || receive.micro_batch >= micro_batch_count_max) return false;
  if (receive.kind == Kind::receive_forward) return placement_.previous(receive.stage).has_value();
  return receive.kind == Kind::receive_backward && placement_.next(receive.stage).has_value();
}

Hub::Route Hub::route_of(const Parcel& parcel) const {
  if (parcel.kind != Parcel::Kind::message) return route_of_sum(parcel, unpack_note(parcel.note));
  const Op receive = parcel.receive;
  if (!is_of_message(receive)) {
    throw std::runtime_error(fmt::format("a message for micro-batch {} of stage {} and op kind {}, which no rank runs",
                                         receive.micro_batch, receive.stage, static_cast<int>(receive.kind)));
  }
  const int to = rank_of(receive.stage);
  if (parcel.rank != to) {
    throw std::runtime_error(
        fmt::format("a message for {} on rank {}; it is on rank {}", to_text(receive), parcel.rank, to));
  }
  return {rank_of(peer_of(receive, placement_).stage), to};
}

Hub::Route Hub::route_of_sum(const Parcel& parcel, const Note& note) const {
  const std::vector<int>& stages = note.stages;
  const bool is_group = note.is_sum
                            ? stages == first_stages_
                            : stages.size() > 1 && stages.front() >= 0 && stages.back() < placement_.stages() &&
                                  std::ranges::adjacent_find(stages, std::ranges::greater_equal()) == stages.end();
  if (!is_group) {
    throw std::runtime_error(fmt::format("sums over stages {}, which are no group", fmt::join(stages, ", ")));
  }
  const int home = rank_of(stages.front());
  const auto is_on = [&](int stage) { return rank_of(stage) == parcel.rank; };
  const auto index = static_cast<std::size_t>(parcel.index);
  if (parcel.kind == Parcel::Kind::part && index < stages.size() && is_on(stages[index])) return {parcel.rank, home};
  if (parcel.kind == Parcel::Kind::sums && std::ranges::any_of(stages, is_on)) return {home, parcel.rank};
  throw std::runtime_error(fmt::format("sums over stages {}, and among these number {} of rank {}, which it is not",
                                       fmt::join(stages, ", "), parcel.index, parcel.rank));
}

Forms Hub::forms_of(const Parcel& parcel) {
  (void)route_of(parcel);
  if (parcel.kind != Parcel::Kind::message) return unpack_note(parcel.note).forms;
  if (!parcel.note.empty()) {
    agreement_.learn(parcel.receive, unpack_note(parcel.note).forms);
  }
  return agreement_.forms(parcel.receive);
}

void Hub::deliver(Parcel parcel) {
  (void)route_of(parcel);
  if (parcel.kind == Parcel::Kind::message) {
    const auto arrived = std::max(Clock::now(), parcel.sent + options_.link_delay);
    return mailbox_of(parcel.rank)
        .put(box_of(parcel.receive), {parcel.receive.micro_batch, std::move(parcel.content), arrived});
  }
  const Note note = unpack_note(parcel.note);
  if (dualpipe::detail::transport::forms_of(parcel.content) != note.forms) {
    throw std::runtime_error(
        fmt::format("{} tensors where its note describes {}", parcel.content.size(), note.forms.size()));
  }
  Group& group = group_of({note.is_sum, note.stages});
  if (parcel.kind == Parcel::Kind::sums) {
    return mailbox_of(parcel.rank)
        .put(group.members.at(parcel.rank).sums, {0, std::move(parcel.content), Clock::now()});
  }
  if (!group.meeting.leave(static_cast<std::size_t>(parcel.index), std::move(parcel.content))) {
    throw std::runtime_error(fmt::format("what {} brings to the sum over stages {}, twice",
                                         side(group, static_cast<std::size_t>(parcel.index)),
                                         fmt::join(note.stages, ", ")));
  }
}

// --- the end

void Hub::abort(const std::string& reason) {
  if (!verdict_->abort(reason)) return;
  wake();
  if (wire_ != nullptr) wire_->abort(reason);
}

void Hub::wake() {
  for (Mailbox& each : mailboxes_) each.wake();
  const std::lock_guard lock(groups_mutex_);
  for (auto& each : groups_) each.second->meeting.wake();
}

namespace {

class RankTransport final : public Transport {
 public:
  RankTransport(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  void begin(const Program& /*program*/, Device& /*device*/) override {}  // any order will do
  void end_batch() override {}
  void confirm() override {}
  void send(Op message, Tensors tensors, const Mark& ready) override { hub_->send(message, std::move(tensors), ready); }
  void post_receive(Op) override {}  // what comes is taken in anyway
  [[nodiscard]] Received wait(Op message) override { return hub_->wait(message); }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    hub_->reduce(stages, stage, tensors);
  }
  [[nodiscard]] double sum(double value) override { return hub_->sum(rank_, value); }
  void abort(const std::string& reason) override { hub_->abort(reason); }

 private:
  std::shared_ptr<Hub> hub_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> transports_of(std::shared_ptr<Hub> hub, int ranks, std::span<const int> here) {
  std::vector<std::unique_ptr<Transport>> transports(static_cast<std::size_t>(ranks));
  for (const int rank : here) transports[static_cast<std::size_t>(rank)] = std::make_unique<RankTransport>(hub, rank);
  return transports;
}

}  // namespace dualpipe::detail::transport
