#include "dualpipe/exec/transport/ordered_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pthread.h>

#include <algorithm>
#include <iterator>
#include <ranges>
#include <stdexcept>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/sums.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

using namespace std::chrono_literals;

constexpr auto look_shortest = std::chrono::nanoseconds(1ms);
constexpr auto look_longest = std::chrono::nanoseconds(50ms);
constexpr int looks_per_timeout = 20;
// Most groups are put on their stream at once.
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

// The stream that the thread used before, again.
class StreamGuard {
 public:
  StreamGuard(Device& device, Stream stream) : device_(device), before_(device.used()) { device.use(stream); }
  ~StreamGuard() { device_.use(before_); }
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  Device& device_;
  Stream before_;
};

Tensors heralds_of(std::span<const at::Tensor> tensors) {
  Tensors heralds;
  for (const at::Tensor& each : tensors) heralds.push_back(herald_of(each));
  return heralds;
}

Stream device_stream(std::size_t stream) { return {Stream::Kind::message, static_cast<std::uint16_t>(stream)}; }

}  // namespace

OrderedTransport::OrderedTransport(std::unique_ptr<OrderedBackend> backend, const Placement& placement, int rank,
                                   const TransportOptions& options, std::shared_ptr<MessageRouter> router,
                                   std::shared_ptr<AbortFlag> abort_flag)
    : backend_(std::move(backend)),
      placement_(placement),
      rank_(rank),
      options_(options),
      router_(std::move(router)),
      abort_flag_(std::move(abort_flag)),
      in_use_(&specs_.try_emplace(0, placement_).first->second) {
  watchdog_ = std::jthread([this](const std::stop_token& ended) { watch(ended); });
  pthread_setname_np(watchdog_.native_handle(), "messages watched");
}

OrderedTransport::~OrderedTransport() {
  watchdog_.request_stop();
  watchdog_.join();
  if (abort_flag_->aborted()) cancel_backend();
  backend_->close(std::min(options_.timeout, close_wait));
}

int OrderedTransport::peer_rank(Op message) const { return rank_of(peer_of(message, placement_).stage); }

// --- the beginning

void OrderedTransport::expect(const MessageForms& forms) {
  constexpr std::size_t known_max = 64;  // inputs of ever new shapes must not fill the memory
  if (specs_.size() >= known_max && !specs_.contains(forms.id)) specs_.clear();
  in_use_ = &specs_.try_emplace(forms.id, placement_, forms.of_place).first->second;
}

void OrderedTransport::begin(const Program& program, Device& device) {
  throw_if_aborted();
  backend_->begin(device.where());
  streams_ = backend_->streams();
  if (std::ranges::find(checked_, program) == checked_.end()) {
    check_message_order(program, streams_);
    checked_.push_back(program);
  }
  {
    const std::lock_guard lock(mutex_);
    device_ = &device;
  }
  batch_.clear();
  arrivals_.clear();
  if (!std::exchange(is_connected_, true)) connect();
}

void OrderedTransport::connect() {
  for (std::size_t stream = 0; stream < streams_; ++stream) {
    backend_->connect(stream);
    await_ready(stream, "make a communicator of all ranks");
  }
  for (std::size_t stream = 0; stream < streams_; ++stream) meet_neighbours(stream);
}

// NCCL connects two ranks when they first exchange something, and both wait for that. It must not happen in the midst
// of a step, where one may wait for what the other does later; so all do it now, a byte to and from each.
void OrderedTransport::meet_neighbours(std::size_t stream) {
  std::set<int> receivers;
  std::set<int> senders;
  const auto meet = [&](std::optional<int> stage, Kind kind) {
    if (!stage || rank_of(*stage) == rank_ || stream_of(kind) != stream) return;
    (is_send(kind) ? receivers : senders).insert(rank_of(*stage));
  };
  for (const int stage : placement_.stages_on(rank_)) {
    meet(placement_.next(stage), Kind::send_forward);
    meet(placement_.previous(stage), Kind::receive_forward);
    meet(placement_.previous(stage), Kind::send_backward);
    meet(placement_.next(stage), Kind::receive_backward);
  }
  std::vector<Transfer> transfers;
  const auto byte = [&] { return at::zeros({1}, at::TensorOptions(at::kByte).device(device_->where())); };
  for (const int peer : receivers) transfers.push_back({byte(), peer, true, "the first byte"});
  for (const int peer : senders) transfers.push_back({byte(), peer, false, "the first byte"});
  const std::array<Event, 1> after{device_->record_event()};
  await(*issue(stream, std::move(transfers), after));
}

// --- messages

void OrderedTransport::send(Op message, Tensors tensors, const Event& ready) {
  throw_if_aborted();
  if (in_use_->check(message, tensors)) router_->send(message, heralds_of(tensors), {});
  Message sent{plain(message), std::move(tensors), ready};
  for (at::Tensor& each : sent.tensors) {
    if (!each.defined() || each.is_contiguous()) continue;
    const detail::replay::ChargeToNobody guard;
    each = each.contiguous();
    sent.ready = device_->record_event();
  }
  batch_.push_back(std::move(sent));
}

void OrderedTransport::post_receive(Op message) {
  throw_if_aborted();
  batch_.push_back({plain(message), {}});
}

// A stream whose receives are known goes ahead of one that still has to wait for that.
void OrderedTransport::end_batch() {
  if (batch_.empty()) return;
  release_done();
  const Event reached = device_->record_event();
  std::array<Messages, 2> by_stream;
  for (Message& each : std::exchange(batch_, {})) by_stream.at(stream_of(each.op.kind)).push_back(std::move(each));
  std::array<bool, 2> waits{};
  for (std::size_t stream = 0; stream < streams_; ++stream) {
    Messages& messages = by_stream[stream];
    waits[stream] = !std::ranges::all_of(messages, [&](const Message& each) { return is_known(each.op); });
    if (!waits[stream]) issue_messages(stream, std::move(messages), reached);
  }
  for (std::size_t stream = 0; stream < streams_; ++stream) {
    if (waits[stream]) issue_first(stream, std::move(by_stream[stream]), reached);
  }
}

// Where a receive is the first of its boundary.
//
// What it is the answer to may be among the sends of this very batch: then these have to go ahead. But if both ends did
// so, each would send before it receives, and neither would end. Each has told what it sends before it comes here; so
// whoever comes last finds out at once what it receives, and its group is whole. That is enough.
void OrderedTransport::issue_first(std::size_t stream, Messages messages, const Event& reached) {
  const auto is_sent = [](const Message& each) { return is_send(each.op.kind); };
  const auto deadline = Clock::now() + std::min(patience_with_first_receive, options_.timeout / 4);
  const auto is_known_soon = [&](const Message& each) {
    return is_known(each.op) || learn(each.op, std::max(deadline - Clock::now(), std::chrono::nanoseconds(0)));
  };
  if (std::ranges::any_of(messages, is_sent) && !std::ranges::all_of(messages, is_known_soon)) {
    Messages sends;
    std::ranges::copy_if(messages, std::back_inserter(sends), is_sent);
    std::erase_if(messages, is_sent);
    issue_messages(stream, std::move(sends), reached);
  }
  for (const Message& each : messages) {
    if (!is_known(each.op)) learn(each.op);
  }
  issue_messages(stream, std::move(messages), reached);
}

Received OrderedTransport::wait(Op message) {
  throw_if_aborted();
  auto found = arrivals_.extract(plain(message));
  if (found.empty()) throw std::logic_error(fmt::format("a wait for {}, which was not posted", to_text(message)));
  Arrival& arrival = found.mapped();
  await(*arrival.group, arrival.first, arrival.count);
  return {std::move(arrival.tensors), Clock::now(), arrival.group->done};
}

bool OrderedTransport::is_known(Op message) const { return is_send(message.kind) || in_use_->knows(message); }

// Its sender says what it looks like as soon as it sends it.
void OrderedTransport::learn(Op receive) { note(receive, router_->wait(receive)); }

bool OrderedTransport::learn(Op receive, std::chrono::nanoseconds patience) {
  const auto herald = router_->wait_for(receive, patience);
  if (herald) note(receive, *herald);
  return herald.has_value();
}

void OrderedTransport::note(Op receive, const Received& herald) {
  TensorSpecs specs;
  for (const at::Tensor& each : herald.tensors) specs.push_back(spec_of_herald(each));
  in_use_->learn(receive, std::move(specs));
}

void OrderedTransport::issue_messages(std::size_t stream, Messages messages, const Event& reached) {
  if (messages.empty()) return;
  const StreamGuard guard(*device_, device_stream(stream));
  std::vector<Transfer> transfers;
  std::vector<Event> after{reached};
  std::vector<std::pair<Op, Arrival>> received;
  for (Message& each : messages) {
    const std::size_t first = transfers.size();
    if (is_send(each.op.kind)) {
      after.push_back(each.ready);
    } else {
      const detail::replay::ChargeToNobody nobody;
      for (const TensorSpec& spec : in_use_->of(each.op)) each.tensors.push_back(empty_of(spec, device_->where()));
    }
    for (const at::Tensor& tensor : each.tensors) {
      if (!tensor.defined() || tensor.nbytes() == 0) continue;  // at both ends
      transfers.push_back({tensor, peer_rank(each.op), is_send(each.op.kind), to_text(each.op)});
    }
    if (is_receive(each.op.kind)) {
      received.emplace_back(each.op, Arrival{std::move(each.tensors), nullptr, first, transfers.size() - first});
    }
  }
  messages.clear();  // what is sent is held by the group alone
  const std::shared_ptr<Group> group = issue(stream, std::move(transfers), after);
  for (auto& [op, arrival] : received) {
    arrival.group = group;
    arrivals_[op] = std::move(arrival);
  }
}

// The device's stream need not be in use.
std::shared_ptr<OrderedTransport::Group> OrderedTransport::issue(std::size_t stream, std::vector<Transfer> transfers,
                                                                 std::span<const Event> after) {
  const StreamGuard guard(*device_, device_stream(stream));
  for (const Event& each : after) device_->wait(each);
  auto group = std::make_shared<Group>(Group{.transfers = std::move(transfers), .started = device_->record_event()});
  throw_if_aborted();
  if (!group->transfers.empty()) {
    group->work = backend_->put(stream, group->transfers);
    await_ready(stream, "put a group on its stream");
  }
  group->done = device_->record_event();
  const std::lock_guard lock(mutex_);
  // Where it was aborted meanwhile the watchdog must not look at the device, which may soon be gone.
  (is_aborted_ ? abandoned_ : under_way_.at(stream)).push_back(group);
  return group;
}

void OrderedTransport::await_ready(std::size_t stream, const char* what) {
  const auto deadline = Clock::now() + options_.timeout;
  for (int looks = 0;; ++looks) {
    throw_if_aborted();
    if (backend_->is_ready(stream)) return;
    if (Clock::now() >= deadline) {
      throw TimeoutError(fmt::format("rank {} waited {} for {} to {}; another rank has not come to it", rank_,
                                     seconds(options_.timeout), backend_->name(), what));
    }
    if (looks < yields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(nap_after_yields);
    }
  }
}

// The watchdog sees to it that these end.
void OrderedTransport::await(Group& group) {
  await(group, 0, group.transfers.size());
  while (!is_done(group)) {
    throw_if_aborted();
    std::this_thread::sleep_for(nap_after_yields);
  }
  release_done();
}

// On a GPU there is nothing to wait for: the streams do.
void OrderedTransport::await(Group& group, std::size_t first, std::size_t count) {
  if (!group.work) return;
  const auto note_start = [&](std::optional<Clock::time_point> start) {
    const std::lock_guard lock(mutex_);
    group.start_seen = start;
  };
  note_start(Clock::now());
  try {
    for (std::size_t each = first; each < first + count; ++each) group.work->wait(each);
  } catch (const TransferError&) {
    throw_if_aborted();  // it was ended with the run
    throw;
  }
  note_start({});
}

void OrderedTransport::confirm() {
  release_done();
  throw_if_aborted();
}

// --- sums

double OrderedTransport::sum(double value) {
  throw_if_aborted();
  return router_->sum(rank_, value);
}

void OrderedTransport::reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) {
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
void OrderedTransport::agree(std::span<const int> stages, Sum& sum) {
  for (const auto& [stage, tensors] : sum.brought) {
    Tensors heralds = heralds_of(tensors);
    router_->reduce(stages, stage, heralds);
  }
  sum.is_agreed = true;
}

// What the stages of other ranks bring, by stage. Each end goes through the stages in their order.
std::map<int, Tensors> OrderedTransport::exchange(std::span<const int> stages, const Sum& sum) {
  const std::size_t stream = stream_of(Kind::send_backward);
  std::vector<Transfer> transfers;
  std::map<int, Tensors> parts;
  const Tensors& form = sum.brought.begin()->second;
  for (const int stage : stages) {
    const int peer = rank_of(stage);
    if (peer == rank_) continue;
    const std::string what = fmt::format("gradients of stage {}", stage);
    const StreamGuard guard(*device_, device_stream(stream));
    for (const at::Tensor& each : form) {
      parts[stage].push_back(at::empty(each.sizes(), each.options()));
      if (each.nbytes() > 0) transfers.push_back({parts[stage].back(), peer, false, what});
    }
  }
  for (const auto& [stage, tensors] : sum.brought) {
    std::set<int> peers;
    for (const int each : stages) peers.insert(rank_of(each));
    peers.erase(rank_);
    for (const at::Tensor& each : tensors) {
      if (each.nbytes() == 0) continue;
      const at::Tensor sent = each.contiguous();
      for (const int peer : peers) {
        transfers.push_back({sent, peer, true, fmt::format("gradients of stage {}", stage)});
      }
    }
  }
  if (transfers.empty()) return parts;
  const std::array<Event, 1> after{device_->record_event()};
  const std::shared_ptr<Group> group = issue(stream, std::move(transfers), after);
  await(*group);
  for (auto& [stage, tensors] : parts) {
    for (at::Tensor& each : tensors) {
      Event ready = group->done;
      each = device_->take(std::move(each), ready);
    }
  }
  return parts;
}

// --- the end

void OrderedTransport::abort(const std::string& reason) {
  router_->abort(reason);
  cancel_backend();
}

// Nobody may look at a device any more when the rank has ended.
void OrderedTransport::throw_if_aborted() {
  if (!abort_flag_->aborted()) return;
  cancel_backend();
  abort_flag_->throw_if_aborted();
}

void OrderedTransport::cancel_backend() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(is_aborted_, true)) return;
  backend_->cancel();
  for (Groups& groups : under_way_) {
    std::ranges::move(groups, std::back_inserter(abandoned_));
    groups.clear();
  }
}

bool OrderedTransport::is_done(const Group& group) const {
  if (!group.work) return device_->is_done(group.done);
  for (std::size_t each = 0; each < group.transfers.size(); ++each) {
    if (!group.work->is_done(each)) return false;
  }
  return true;
}

// A stream of a device runs in order. Without one, a message that nobody waits for yet may be late, and others done.
void OrderedTransport::release_done() {
  const std::lock_guard lock(mutex_);
  for (Groups& groups : under_way_) {
    while (!groups.empty() && is_done(*groups.front())) {
      groups.front()->transfers.clear();  // some of what was received may still be waited for
      groups.pop_front();
    }
    std::erase_if(groups, [&](const auto& each) { return each->work && is_done(*each); });
  }
}

void OrderedTransport::watch(const std::stop_token& ended) {
  const auto pause = std::clamp(options_.timeout / looks_per_timeout, look_shortest, look_longest);
  while (!ended.stop_requested()) {
    if (abort_flag_->aborted()) return cancel_backend();
    if (const std::string reason = trouble(); !reason.empty()) return abort(reason);
    std::unique_lock lock(mutex_);
    (void)nothing_.wait_for(lock, ended, pause, [] { return false; });
  }
}

// Empty: none.
std::string OrderedTransport::trouble() {
  const std::lock_guard lock(mutex_);
  try {
    backend_->check();
  } catch (const std::exception& error) {
    return fmt::format("rank {}: {}", rank_, error.what());
  }
  for (Groups& groups : under_way_) {
    for (const auto& each : groups) {
      if (is_overdue(*each)) return overdue(*each);
      if (!each->work) break;  // what is behind it in its stream has not started
    }
  }
  return "";
}

bool OrderedTransport::is_overdue(Group& group) const {
  if (!group.work && !group.start_seen && device_->is_done(group.started)) group.start_seen = Clock::now();
  return group.start_seen && Clock::now() - *group.start_seen > options_.timeout && !is_done(group);
}

std::string OrderedTransport::overdue(const Group& group) const {
  std::vector<std::string> awaited;
  for (std::size_t number = 0; number < group.transfers.size(); ++number) {
    if (group.work && group.work->is_done(number)) continue;
    const Transfer& each = group.transfers[number];
    std::string text = fmt::format("rank {} ({})", each.peer, each.what);
    if (std::ranges::find(awaited, text) == awaited.end()) awaited.push_back(std::move(text));
  }
  return fmt::format("rank {} waited {} for {}", rank_, seconds(options_.timeout), fmt::join(awaited, ", "));
}

}  // namespace dualpipe::detail::transport
