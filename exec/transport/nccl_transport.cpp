#include "dualpipe/exec/transport/nccl_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pthread.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <ranges>
#include <stdexcept>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/nccl_order.h"
#include "dualpipe/exec/transport/sums.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

using namespace std::chrono_literals;

// Thread blocks of each communicator: the others stay with the stages.
constexpr int ctas_max = 4;
constexpr auto look_shortest = std::chrono::nanoseconds(1ms);
constexpr auto look_longest = std::chrono::nanoseconds(50ms);
constexpr int looks_per_timeout = 20;
// NCCL puts most groups on their lane at once.
constexpr int yields = 200;
constexpr auto nap_after_yields = 50us;
// For what a first message looks like, where its sender may be waiting for this rank.
constexpr auto patience_with_first_receive = std::chrono::nanoseconds(500ms);
constexpr auto close_wait = std::chrono::nanoseconds(5s);

// A tensor of no elements tells what another is like.
at::Tensor herald_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  std::vector<std::int64_t> sizes = tensor.sizes().vec();
  sizes.insert(sizes.begin(), 0);
  return at::empty(sizes, tensor.scalar_type());
}
TensorSpec spec_of_herald(const at::Tensor& herald) {
  TensorSpec spec = spec_of(herald);
  if (herald.defined()) spec.sizes.erase(spec.sizes.begin());
  return spec;
}

// The lane that the thread used before, again.
class LaneGuard {
 public:
  LaneGuard(Device& device, Lane lane) : device_(device), before_(device.used()) { device.use(lane); }
  ~LaneGuard() { device_.use(before_); }
  LaneGuard(const LaneGuard&) = delete;
  LaneGuard& operator=(const LaneGuard&) = delete;

 private:
  Device& device_;
  Lane before_;
};

Tensors heralds_of(std::span<const at::Tensor> tensors) {
  Tensors heralds;
  for (const at::Tensor& each : tensors) heralds.push_back(herald_of(each));
  return heralds;
}

Lane lane_of(std::size_t direction) { return {Lane::Kind::message, static_cast<std::uint16_t>(direction)}; }

}  // namespace

NcclTransport::NcclTransport(std::shared_ptr<Nccl> nccl, const UniqueIds& ids, const Placement& placement, int rank,
                             const TransportOptions& options, std::shared_ptr<MessageRouter> router,
                             std::shared_ptr<AbortFlag> abort_flag)
    : nccl_(std::move(nccl)),
      ids_(ids),
      placement_(placement),
      rank_(rank),
      options_(options),
      router_(std::move(router)),
      abort_flag_(std::move(abort_flag)),
      specs_(placement_) {
  watchdog_ = std::jthread([this](const std::stop_token& ended) { watch(ended); });
  pthread_setname_np(watchdog_.native_handle(), "nccl watchdog");
}

NcclTransport::~NcclTransport() {
  watchdog_.request_stop();
  watchdog_.join();
  if (abort_flag_->aborted()) abort_communicators();
  close_communicators();
}

int NcclTransport::peer_rank(Op message) const { return rank_of(peer_of(message, placement_).stage); }

// --- the beginning

void NcclTransport::begin(const Program& program, Device& device) {
  throw_if_aborted();
  if (device.where().type() != nccl_->device_type()) {
    throw InputError(
        fmt::format("NCCL moves tensors between GPUs, and those of this run are on the {}; use --device cuda",
                    device.where().str()));
  }
  if (std::ranges::find(checked_, program) == checked_.end()) {
    check_for_nccl(program);
    checked_.push_back(program);
  }
  {
    const std::lock_guard lock(mutex_);
    device_ = &device;
  }
  assert(batch_.empty());
  arrivals_.clear();
  if (!std::exchange(is_connected_, true)) connect();
}

void NcclTransport::connect() {
  make_communicators();
  for (const std::size_t direction : {activations, gradients}) meet_neighbours(direction);
}

void NcclTransport::make_communicators() {
  for (const std::size_t direction : {activations, gradients}) {
    {
      const std::lock_guard lock(mutex_);
      if (!is_aborted_) communicators_.push_back(nccl_->init(ids_[direction], rank_, placement_.ranks, ctas_max));
    }
    await_state(direction, "make a communicator of all ranks");
  }
}

// NCCL connects two ranks when they first exchange something, and both wait for that. It must not happen in the midst
// of a step, where one may wait for what the other does later; so all do it now, a byte to and from each.
void NcclTransport::meet_neighbours(std::size_t direction) {
  std::set<int> receivers;
  std::set<int> senders;
  for (const int stage : placement_.stages_on(rank_)) {
    const auto previous = placement_.previous(stage);
    const auto next = placement_.next(stage);
    const auto& to = direction == activations ? next : previous;
    const auto& from = direction == activations ? previous : next;
    if (to && rank_of(*to) != rank_) receivers.insert(rank_of(*to));
    if (from && rank_of(*from) != rank_) senders.insert(rank_of(*from));
  }
  std::vector<Transfer> transfers;
  const auto byte = [&] { return at::zeros({1}, at::TensorOptions(at::kByte).device(device_->where())); };
  for (const int peer : receivers) transfers.push_back({byte(), peer, true, "the first byte"});
  for (const int peer : senders) transfers.push_back({byte(), peer, false, "the first byte"});
  const std::array<Mark, 1> after{device_->mark()};
  (void)issue(direction, std::move(transfers), after);
  await_groups(direction);
}

// --- messages

void NcclTransport::send(Op message, Tensors tensors, const Mark& ready) {
  throw_if_aborted();
  if (specs_.check(message, tensors)) router_->send(message, heralds_of(tensors), {});
  Message sent{plain(message), std::move(tensors), ready};
  for (at::Tensor& each : sent.tensors) {
    if (!each.defined() || each.is_contiguous()) continue;
    const detail::replay::ChargeToNobody guard;
    each = each.contiguous();
    sent.ready = device_->mark();
  }
  batch_.push_back(std::move(sent));
}

void NcclTransport::post_receive(Op message) {
  throw_if_aborted();
  batch_.push_back({plain(message), {}});
}

// A direction whose receives are known goes ahead of one that still has to wait for that.
void NcclTransport::end_batch() {
  if (batch_.empty()) return;
  release_done();
  const Mark reached = device_->mark();
  std::array<Messages, 2> by_direction;
  for (Message& each : std::exchange(batch_, {})) by_direction[direction_of(each.op.kind)].push_back(std::move(each));
  std::array<bool, 2> waits{};
  for (const std::size_t direction : {activations, gradients}) {
    Messages& messages = by_direction[direction];
    waits[direction] = !std::ranges::all_of(messages, [&](const Message& each) { return is_known(each.op); });
    if (!waits[direction]) issue_messages(direction, std::move(messages), reached);
  }
  for (const std::size_t direction : {activations, gradients}) {
    if (waits[direction]) issue_first(direction, std::move(by_direction[direction]), reached);
  }
}

// Where a receive is the first of its boundary.
//
// What it is the answer to may be among the sends of this very batch: then these have to go ahead. But if both ends did
// so, each would send before it receives, and neither would end. Each has told what it sends before it comes here; so
// whoever comes last finds out at once what it receives, and its group is whole. That is enough.
void NcclTransport::issue_first(std::size_t direction, Messages messages, const Mark& reached) {
  const auto is_sent = [](const Message& each) { return is_send(each.op.kind); };
  const auto deadline = Clock::now() + std::min(patience_with_first_receive, options_.timeout / 4);
  const auto is_known_soon = [&](const Message& each) {
    return is_known(each.op) || learn(each.op, std::max(deadline - Clock::now(), std::chrono::nanoseconds(0)));
  };
  if (std::ranges::any_of(messages, is_sent) && !std::ranges::all_of(messages, is_known_soon)) {
    Messages sends;
    std::ranges::copy_if(messages, std::back_inserter(sends), is_sent);
    std::erase_if(messages, is_sent);
    issue_messages(direction, std::move(sends), reached);
  }
  for (const Message& each : messages) {
    if (!is_known(each.op)) learn(each.op);
  }
  issue_messages(direction, std::move(messages), reached);
}

Received NcclTransport::wait(Op message) {
  throw_if_aborted();
  const auto arrival = arrivals_.find(plain(message));
  assert(arrival != arrivals_.end() && "its receive was not posted");
  Arrival found = std::move(arrival->second);
  arrivals_.erase(arrival);
  return {std::move(found.tensors), Clock::now(), found.ready};
}

bool NcclTransport::is_known(Op message) const { return is_send(message.kind) || specs_.knows(message); }

// Its sender says what it looks like as soon as it sends it.
void NcclTransport::learn(Op receive) { note(receive, router_->wait(receive)); }

bool NcclTransport::learn(Op receive, std::chrono::nanoseconds patience) {
  const auto herald = router_->wait_for(receive, patience);
  if (herald) note(receive, *herald);
  return herald.has_value();
}

void NcclTransport::note(Op receive, const Received& herald) {
  TensorSpecs specs;
  for (const at::Tensor& each : herald.tensors) specs.push_back(spec_of_herald(each));
  specs_.learn(receive, std::move(specs));
}

void NcclTransport::issue_messages(std::size_t direction, Messages messages, const Mark& reached) {
  if (messages.empty()) return;
  const LaneGuard lane(*device_, lane_of(direction));
  std::vector<Transfer> transfers;
  std::vector<Mark> after{reached};
  std::vector<std::pair<Op, Tensors>> received;
  for (Message& each : messages) {
    if (is_send(each.op.kind)) {
      after.push_back(each.ready);
    } else {
      const detail::replay::ChargeToNobody guard;
      for (const TensorSpec& spec : specs_.of(each.op)) each.tensors.push_back(empty_of(spec, device_->where()));
      received.emplace_back(each.op, each.tensors);
    }
    for (at::Tensor& tensor : each.tensors) {
      if (!tensor.defined()) continue;
      transfers.push_back({std::move(tensor), peer_rank(each.op), is_send(each.op.kind), to_text(each.op)});
    }
  }
  const Mark done = issue(direction, std::move(transfers), after);
  for (auto& [op, tensors] : received) arrivals_[op] = {std::move(tensors), done};
}

// Returns when the group will be done. Its lane need not be in use.
Mark NcclTransport::issue(std::size_t direction, std::vector<Transfer> transfers, std::span<const Mark> after) {
  const LaneGuard lane(*device_, lane_of(direction));
  for (const Mark& each : after) device_->wait(each);
  const Mark started = device_->mark();
  throw_if_aborted();
  {
    const std::lock_guard lock(mutex_);
    if (!is_aborted_) put_on_lane(communicators_[direction], transfers);
  }
  await_state(direction, "put a group on its stream");
  const Mark done = device_->mark();
  const std::lock_guard lock(mutex_);
  // Where it was aborted meanwhile the watchdog must not look at the device, which may soon be gone.
  (is_aborted_ ? abandoned_ : under_way_[direction]).push_back({std::move(transfers), started, done});
  return done;
}

void NcclTransport::put_on_lane(Nccl::Communicator communicator, std::span<const Transfer> transfers) {
  nccl_->group_start();
  for (const Transfer& each : transfers) {
    if (each.tensor.nbytes() == 0) continue;  // at both ends
    if (each.is_send) {
      nccl_->send(communicator, each.tensor.const_data_ptr(), each.tensor.nbytes(), each.peer);
    } else {
      nccl_->receive(communicator, each.tensor.mutable_data_ptr(), each.tensor.nbytes(), each.peer);
    }
  }
  nccl_->group_end();
}

void NcclTransport::await_state(std::size_t direction, const char* what) {
  const auto deadline = Clock::now() + options_.timeout;
  for (int looks = 0;; ++looks) {
    throw_if_aborted();
    {
      const std::lock_guard lock(mutex_);
      if (!is_aborted_ && nccl_->state(communicators_[direction]) == Nccl::State::done) return;
    }
    if (Clock::now() >= deadline) {
      throw TimeoutError(fmt::format("rank {} waited {} for NCCL to {}; another rank has not come to it", rank_,
                                     seconds(options_.timeout), what));
    }
    if (looks < yields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(nap_after_yields);
    }
  }
}

// The watchdog sees to it that this ends.
void NcclTransport::await_groups(std::size_t direction) {
  while (true) {
    release_done();
    throw_if_aborted();
    {
      const std::lock_guard lock(mutex_);
      if (under_way_[direction].empty()) return;
    }
    std::this_thread::sleep_for(nap_after_yields);
  }
}

void NcclTransport::confirm() {
  assert(batch_.empty());
  release_done();
  throw_if_aborted();
}

// --- sums

double NcclTransport::sum(double value) {
  throw_if_aborted();
  return router_->sum(rank_, value);
}

void NcclTransport::reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) {
  throw_if_aborted();
  if (stages.size() == 1) return;
  Sum& sum = sums_[{stages.begin(), stages.end()}];
  sum.brought[stage].assign(tensors.begin(), tensors.end());
  if (std::ssize(sum.brought) < std::ranges::count_if(stages, [&](int each) { return rank_of(each) == rank_; })) return;
  if (!sum.is_agreed) agree(stages, sum);
  const c10::NoGradGuard no_grad;
  const detail::replay::ChargeToNobody guard;
  std::map<int, Tensors> parts = exchange(stages, sum);
  parts.insert(sum.brought.begin(), sum.brought.end());
  const Tensors sums = sums_of(parts | std::views::values);
  for (const auto& [own, brought] : std::exchange(sum.brought, {})) {
    for (std::size_t k = 0; k < sums.size(); ++k) brought[k].copy_(sums[k]);
  }
}

// Where they come together the first time it is seen whether all bring the same.
void NcclTransport::agree(std::span<const int> stages, Sum& sum) {
  for (const auto& [stage, tensors] : sum.brought) {
    Tensors heralds = heralds_of(tensors);
    router_->reduce(stages, stage, heralds);
  }
  sum.is_agreed = true;
}

// What the stages of other ranks bring, by stage. Each end goes through the stages in their order.
std::map<int, Tensors> NcclTransport::exchange(std::span<const int> stages, const Sum& sum) {
  std::vector<Transfer> transfers;
  std::map<int, Tensors> parts;
  const Tensors& form = sum.brought.begin()->second;
  for (const int stage : stages) {
    const int peer = rank_of(stage);
    if (peer == rank_) continue;
    const std::string what = fmt::format("gradients of stage {}", stage);
    const LaneGuard lane(*device_, lane_of(gradients));
    for (const at::Tensor& each : form) {
      parts[stage].push_back(at::empty(each.sizes(), each.options()));
      transfers.push_back({parts[stage].back(), peer, false, what});
    }
  }
  for (const auto& [stage, tensors] : sum.brought) {
    std::set<int> peers;
    for (const int each : stages) peers.insert(rank_of(each));
    peers.erase(rank_);
    for (const at::Tensor& each : tensors) {
      const at::Tensor sent = each.contiguous();
      for (const int peer : peers) {
        transfers.push_back({sent, peer, true, fmt::format("gradients of stage {}", stage)});
      }
    }
  }
  if (transfers.empty()) return parts;
  const std::array<Mark, 1> after{device_->mark()};
  const Mark done = issue(gradients, std::move(transfers), after);
  await_groups(gradients);
  for (auto& [stage, tensors] : parts) {
    for (at::Tensor& each : tensors) {
      Mark ready = done;
      each = device_->take(std::move(each), ready);
    }
  }
  return parts;
}

// --- the end

void NcclTransport::abort(const std::string& reason) {
  router_->abort(reason);
  abort_communicators();
}

// Nobody may look at a device any more when the rank has ended.
void NcclTransport::throw_if_aborted() {
  if (!abort_flag_->aborted()) return;
  abort_communicators();
  abort_flag_->throw_if_aborted();
}

void NcclTransport::abort_communicators() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(is_aborted_, true)) return;
  for (const Nccl::Communicator each : std::exchange(communicators_, {})) {
    try {
      nccl_->abort(each);
    } catch (const NcclError&) {  // it had failed already
    }
  }
  for (auto& groups : under_way_) {
    std::ranges::move(groups, std::back_inserter(abandoned_));
    groups.clear();
  }
}

void NcclTransport::close_communicators() {
  const std::lock_guard lock(mutex_);
  for (const Nccl::Communicator each : std::exchange(communicators_, {})) {
    try {
      nccl_->finalize(each);
      const auto deadline = Clock::now() + std::min(options_.timeout, close_wait);
      while (nccl_->state(each) == Nccl::State::in_progress && Clock::now() < deadline)
        std::this_thread::sleep_for(nap_after_yields);
      if (nccl_->state(each) == Nccl::State::done) {
        nccl_->destroy(each);
      } else {
        nccl_->abort(each);
      }
    } catch (const NcclError&) {  // there is nothing left to close
    }
  }
}

void NcclTransport::release_done() {
  const std::lock_guard lock(mutex_);
  for (auto& groups : under_way_) {
    while (!groups.empty() && device_->is_done(groups.front().done)) groups.pop_front();
  }
}

void NcclTransport::watch(const std::stop_token& ended) {
  const auto pause = std::clamp(options_.timeout / looks_per_timeout, look_shortest, look_longest);
  while (!ended.stop_requested()) {
    if (abort_flag_->aborted()) return abort_communicators();
    if (const std::string reason = trouble(); !reason.empty()) return abort(reason);
    std::unique_lock lock(mutex_);
    (void)nothing_.wait_for(lock, ended, pause, [] { return false; });
  }
}

// Empty: none.
std::string NcclTransport::trouble() {
  const std::lock_guard lock(mutex_);
  try {
    for (const Nccl::Communicator each : communicators_) (void)nccl_->state(each);
  } catch (const NcclError& error) {
    return fmt::format("rank {}: {}", rank_, error.what());
  }
  for (auto& groups : under_way_) {
    if (groups.empty()) continue;
    Group& first = groups.front();
    if (!device_->is_done(first.started) || device_->is_done(first.done)) continue;
    if (!first.seen_started) first.seen_started = Clock::now();
    if (Clock::now() - *first.seen_started > options_.timeout) return overdue(first);
  }
  return "";
}

std::string NcclTransport::overdue(const Group& group) const {
  std::vector<std::string> awaited;
  for (const Transfer& each : group.transfers) {
    std::string text = fmt::format("rank {} ({})", each.peer, each.what);
    if (std::ranges::find(awaited, text) == awaited.end()) awaited.push_back(std::move(text));
  }
  return fmt::format("rank {} waited {} for {}", rank_, seconds(options_.timeout), fmt::join(awaited, ", "));
}

}  // namespace dualpipe::detail::transport
