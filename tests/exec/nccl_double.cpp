#include "tests/exec/nccl_double.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

using namespace std::chrono_literals;

thread_local LaneDevice* device_of_thread = nullptr;

constexpr int looks_in_progress = 2;  // a call is not done before
constexpr unsigned char garbage = 0xFF;

}  // namespace

// --- lanes

struct LaneDevice::Event {
  bool is_done = false;
  Time time = 0;
};

struct LaneDevice::Worker {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  bool is_idle = true;
  bool ends = false;
  std::thread thread;

  void run() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return !tasks.empty() || ends; });
      if (tasks.empty()) return;
      const auto task = std::move(tasks.front());
      tasks.pop_front();
      is_idle = false;
      lock.unlock();
      task();
      lock.lock();
      is_idle = true;
      changed.notify_all();
    }
  }
};

LaneDevice::LaneDevice() = default;

LaneDevice::~LaneDevice() {
  for (auto& [index, worker] : workers_) {
    {
      const std::lock_guard lock(worker->mutex);
      worker->ends = true;
    }
    worker->changed.notify_all();
    worker->thread.join();
  }
  if (device_of_thread == this) device_of_thread = nullptr;
}

LaneDevice* LaneDevice::of_thread() { return device_of_thread; }

void LaneDevice::begin_step() {
  finish();
  const std::lock_guard lock(mutex_);
  events_.clear();
}

void LaneDevice::use(Lane lane) {
  used_ = lane;
  device_of_thread = this;
}

void LaneDevice::put(Lane lane, std::function<void()> task) {
  std::unique_ptr<Worker>& worker = workers_[lane.index];
  if (!worker) {
    worker = std::make_unique<Worker>();
    worker->thread = std::thread([w = worker.get()] { w->run(); });
  }
  {
    const std::lock_guard lock(worker->mutex);
    worker->tasks.push_back(std::move(task));
  }
  worker->changed.notify_all();
}

Mark LaneDevice::mark() {
  Event* event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    event = &events_.emplace_back();
  }
  if (used_.kind == Lane::Kind::message) {
    put(used_, [this, event] { signal(*event); });
  } else {
    signal(*event);
  }
  return {0, event};
}

void LaneDevice::signal(Event& event) {
  {
    const std::lock_guard lock(mutex_);
    event = {true, now()};
  }
  changed_.notify_all();
}

void LaneDevice::await(const Event& event) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return event.is_done; });
}

bool LaneDevice::is_done(const Mark& mark) const {
  if (mark.event == nullptr) return true;
  const std::lock_guard lock(mutex_);
  return static_cast<const Event*>(mark.event)->is_done;
}

void LaneDevice::wait(const Mark& mark) {
  if (mark.event == nullptr) return;
  const auto* const event = static_cast<const Event*>(mark.event);
  if (used_.kind == Lane::Kind::message) {
    put(used_, [this, event] { await(*event); });
  } else {
    await(*event);
  }
}

at::Tensor LaneDevice::adopt(at::Tensor tensor, const Mark& ready) {
  wait(ready);
  return tensor;
}

at::Tensor LaneDevice::take(at::Tensor tensor, Mark& ready) {
  wait(ready);
  return tensor;
}

void LaneDevice::finish() {
  for (auto& [index, worker] : workers_) {
    std::unique_lock lock(worker->mutex);
    worker->changed.wait(lock, [&w = *worker] { return w.tasks.empty() && w.is_idle; });
  }
}

Time LaneDevice::time_of(const Mark& mark) const {
  if (mark.event == nullptr) return mark.time;
  const std::lock_guard lock(mutex_);
  return static_cast<const Event*>(mark.event)->time;
}

// --- NCCL

struct NcclDouble::Transfer {
  void* data = nullptr;
  std::size_t bytes = 0;
  int peer = 0;
  bool is_send = false;
  bool is_done = false;
  std::vector<char> received{};  // until the group ends
};

struct NcclDouble::Group {
  Member* member = nullptr;
  std::vector<Transfer> transfers;
  LaneDevice* device = nullptr;
  Lane lane;
};

struct NcclDouble::Member {
  Fabric* fabric = nullptr;
  int rank = 0;
  std::size_t number = 0;  // among the rank's
  int looks = 0;           // until it is done
  std::shared_ptr<Group> unlaunched{};
  std::string error{};
  bool is_aborted = false;
  bool is_finalized = false;
};

struct NcclDouble::Fabric {
  int ranks = 0;
  std::set<int> members{};
  std::set<std::pair<int, int>> senders{};  // who has ever sent to whom, and who received from whom
  std::set<std::pair<int, int>> receivers{};
  std::map<std::pair<int, int>, std::deque<Transfer*>> sends{};  // by sender and receiver: under way
  std::map<std::pair<int, int>, std::deque<Transfer*>> receives{};
};

namespace {

// What this thread has put into its group.
struct Open {
  bool is_open = false;
  Nccl::Communicator communicator = nullptr;
};
thread_local Open open_group;

}  // namespace

NcclDouble::NcclDouble() = default;
NcclDouble::~NcclDouble() = default;

std::string NcclDouble::unique_id() {
  const std::lock_guard lock(mutex_);
  return fmt::format("id {}", ids_++);
}

Nccl::Communicator NcclDouble::init(const std::string& unique_id, int rank, int ranks, int /*ctas_max*/) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Fabric>& fabric = fabrics_[unique_id];
  if (!fabric) fabric = std::make_unique<Fabric>();
  fabric->ranks = ranks;
  if (!fabric->members.insert(rank).second) note_misuse(fmt::format("rank {} is in a communicator twice", rank));
  const auto number =
      static_cast<std::size_t>(std::ranges::count_if(members_, [&](const auto& each) { return each->rank == rank; }));
  members_.push_back(std::make_unique<Member>(Member{fabric.get(), rank, number, looks_in_progress}));
  calls_[rank].push_back(fmt::format("init {}", number));
  return members_.back().get();
}

NcclDouble::Member& NcclDouble::member(Communicator communicator, const char* call) {
  Member& found = *static_cast<Member*>(communicator);
  if (found.is_aborted) note_misuse(fmt::format("rank {}: {} after an abort", found.rank, call));
  return found;
}

Nccl::State NcclDouble::state(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "state");
  if (!found.error.empty()) throw NcclError(found.error);
  if (std::ssize(found.fabric->members) < found.fabric->ranks) return State::in_progress;
  if (found.unlaunched && !is_connected(found, *found.unlaunched)) return State::in_progress;
  if (found.looks > 0) {
    --found.looks;
    return State::in_progress;
  }
  if (found.unlaunched) {
    const std::shared_ptr<Group> group = std::exchange(found.unlaunched, {});
    group->device->put(group->lane, [this, group] { run(group); });
  }
  return State::done;
}

void NcclDouble::group_start() { open_group = {true, nullptr}; }

void NcclDouble::send(Communicator communicator, const void* data, std::size_t bytes, int peer) {
  add(communicator, {const_cast<void*>(data), bytes, peer, true}, "send");
}

void NcclDouble::receive(Communicator communicator, void* data, std::size_t bytes, int peer) {
  add(communicator, {data, bytes, peer, false}, "receive");
}

void NcclDouble::add(Communicator communicator, Transfer transfer, const char* call) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, call);
  if (!open_group.is_open) note_misuse(fmt::format("rank {}: {} outside of a group", found.rank, call));
  if (open_group.communicator != nullptr && open_group.communicator != communicator) {
    note_misuse(fmt::format("rank {}: a group of two communicators", found.rank));
  }
  if (open_group.communicator == nullptr && (found.looks > 0 || found.unlaunched)) {
    note_misuse(fmt::format("rank {}: {} on a communicator that is in progress", found.rank, call));
  }
  open_group.communicator = communicator;
  if (!found.unlaunched) {
    found.unlaunched = std::make_shared<Group>(Group{&found, {}, LaneDevice::of_thread(), {}});
    found.unlaunched->lane = LaneDevice::of_thread()->used();
    found.looks = looks_in_progress;
  }
  found.unlaunched->transfers.push_back(std::move(transfer));
}

void NcclDouble::group_end() {
  const std::lock_guard lock(mutex_);
  if (!open_group.is_open) note_misuse("a group ends that did not begin");
  auto* const found = static_cast<Member*>(open_group.communicator);
  open_group = {};
  if (found == nullptr) return;
  std::vector<std::string> texts;
  for (const Transfer& each : found->unlaunched->transfers) {
    auto& ends = each.is_send ? found->fabric->senders : found->fabric->receivers;
    ends.insert(each.is_send ? std::pair(found->rank, each.peer) : std::pair(each.peer, found->rank));
    texts.push_back(each.is_send ? fmt::format("send {} to {}", each.bytes, each.peer)
                                 : fmt::format("receive {} from {}", each.bytes, each.peer));
  }
  const Lane lane = found->unlaunched->lane;
  if (lane.kind != Lane::Kind::message || lane.index != found->number) {
    note_misuse(fmt::format("rank {}: a group of communicator {} on another's lane", found->rank, found->number));
  }
  calls_[found->rank].push_back(fmt::format("{}: {}", found->number, fmt::join(texts, ", ")));
}

// Whether all its peers have come to exchange something with it.
bool NcclDouble::is_connected(const Member& member, const Group& group) const {
  return std::ranges::all_of(group.transfers, [&](const Transfer& each) {
    return each.is_send ? member.fabric->receivers.contains({member.rank, each.peer})
                        : member.fabric->senders.contains({each.peer, member.rank});
  });
}

// On its lane.
void NcclDouble::run(const std::shared_ptr<Group>& group) {
  Member& own = *group->member;
  std::this_thread::sleep_for(20us);
  std::unique_lock lock(mutex_);
  if (own.is_aborted) return;
  for (Transfer& each : group->transfers) {
    const auto ends = each.is_send ? std::pair(own.rank, each.peer) : std::pair(each.peer, own.rank);
    if (!each.is_send) std::memset(each.data, garbage, each.bytes);
    (each.is_send ? own.fabric->sends : own.fabric->receives)[ends].push_back(&each);
    match(*own.fabric, ends.first, ends.second);
  }
  changed_.notify_all();
  changed_.wait(lock, [&] {
    return own.is_aborted || std::ranges::all_of(group->transfers, [](const Transfer& each) { return each.is_done; });
  });
  if (own.is_aborted) {
    const auto forget = [&](auto& queues) {
      for (auto& [ends, queue] : queues) {
        std::erase_if(queue, [&](const Transfer* each) {
          return each >= group->transfers.data() && each < group->transfers.data() + group->transfers.size();
        });
      }
    };
    forget(own.fabric->sends);
    forget(own.fabric->receives);
    return;
  }
  for (Transfer& each : group->transfers) {
    if (!each.is_send && each.bytes > 0) std::memcpy(each.data, each.received.data(), each.bytes);
  }
}

void NcclDouble::match(Fabric& fabric, int from, int to) {
  auto& sends = fabric.sends[{from, to}];
  auto& receives = fabric.receives[{from, to}];
  while (!sends.empty() && !receives.empty()) {
    Transfer& sent = *sends.front();
    Transfer& received = *receives.front();
    if (sent.bytes != received.bytes) {
      note_misuse(fmt::format("rank {} sends {} bytes, rank {} receives {}", from, sent.bytes, to, received.bytes));
    }
    const auto* const data = static_cast<const char*>(sent.data);
    received.received.assign(data, data + std::min(sent.bytes, received.bytes));
    received.received.resize(received.bytes);
    sent.is_done = received.is_done = true;
    sends.pop_front();
    receives.pop_front();
  }
}

void NcclDouble::finalize(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "finalize");
  found.is_finalized = true;
  found.looks = looks_in_progress;
  calls_[found.rank].push_back(fmt::format("finalize {}", found.number));
}

void NcclDouble::destroy(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "destroy");
  if (!found.is_finalized || found.looks > 0) note_misuse(fmt::format("rank {}: destroy before its end", found.rank));
  found.is_aborted = true;
  calls_[found.rank].push_back(fmt::format("destroy {}", found.number));
}

void NcclDouble::abort(Communicator communicator) {
  {
    const std::lock_guard lock(mutex_);
    Member& found = member(communicator, "abort");
    found.is_aborted = true;
    calls_[found.rank].push_back(fmt::format("abort {}", found.number));
  }
  changed_.notify_all();
}

void NcclDouble::fail(int rank, const std::string& error) {
  const std::lock_guard lock(mutex_);
  for (auto& each : members_) {
    if (each->rank == rank) each->error = error;
  }
}

std::vector<std::string> NcclDouble::calls(int rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(rank);
  return found == calls_.end() ? std::vector<std::string>() : found->second;
}

std::vector<std::string> NcclDouble::misuse() const {
  const std::lock_guard lock(mutex_);
  return misuse_;
}

void NcclDouble::note_misuse(const std::string& text) { misuse_.push_back(text); }

}  // namespace dualpipe::test
