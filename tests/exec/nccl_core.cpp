#include "tests/exec/nccl_core.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

namespace dualpipe::test {
namespace {

constexpr int looks_in_progress = 2;  // a call is not done before

// What this thread has put into its group.
struct Open {
  bool is_open = false;
  NcclCore::Communicator communicator = nullptr;
};
thread_local Open open_group;

}  // namespace

// One rank's communicator.
struct NcclCore::Member {
  Fabric* fabric = nullptr;
  int rank = 0;
  std::size_t number = 0;  // among the rank's
  int looks = 0;           // until it is done
  std::shared_ptr<Group> unlaunched{};
  std::string error{};
  bool is_aborted = false;
  bool is_finalized = false;
};

struct NcclCore::Fabric {
  using Queues = std::map<std::pair<int, int>, std::deque<std::shared_ptr<Transfer>>>;  // by sender and receiver

  int ranks = 0;
  std::set<int> members{};
  std::set<std::pair<int, int>> senders{};  // who has ever sent to whom, and who received from whom
  std::set<std::pair<int, int>> receivers{};
  Queues sends{};  // under way
  Queues receives{};

  [[nodiscard]] bool owes(int rank) const {
    return std::ranges::any_of(sends,
                               [&](const auto& each) { return each.first.second == rank && !each.second.empty(); });
  }
};

NcclCore::NcclCore() = default;
NcclCore::~NcclCore() = default;

std::string NcclCore::unique_id() {
  const std::lock_guard lock(mutex_);
  return fmt::format("id {}", ids_++);
}

NcclCore::Communicator NcclCore::init(const std::string& unique_id, int rank, int ranks) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Fabric>& fabric = fabrics_[unique_id];
  if (!fabric) fabric = std::make_unique<Fabric>();
  fabric->ranks = ranks;
  if (!fabric->members.insert(rank).second) misused(fmt::format("rank {} is in a communicator twice", rank));
  const auto number =
      static_cast<std::size_t>(std::ranges::count_if(members_, [&](const auto& each) { return each->rank == rank; }));
  members_.push_back(std::make_unique<Member>(Member{fabric.get(), rank, number, looks_in_progress}));
  note(*members_.back(), "init");
  return members_.back().get();
}

NcclCore::Member& NcclCore::member(Communicator communicator, const char* call) {
  Member& found = *static_cast<Member*>(communicator);
  if (found.is_aborted) misused(fmt::format("rank {}: {} after an abort", found.rank, call));
  return found;
}

bool NcclCore::is_done(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "a look");
  if (!found.error.empty()) throw Failure(found.error);
  if (std::ssize(found.fabric->members) < found.fabric->ranks) return false;
  if (found.unlaunched && !is_connected(*found.unlaunched)) return false;
  if (found.looks > 0) {
    --found.looks;
    return false;
  }
  if (found.unlaunched) launch(std::exchange(found.unlaunched, {}));
  return true;
}

// Whether all its peers have come to exchange something with it.
bool NcclCore::is_connected(const Group& group) const {
  const Member& own = *group.member;
  return std::ranges::all_of(group.transfers, [&](const auto& each) {
    return each->is_send ? own.fabric->receivers.contains({own.rank, each->peer})
                         : own.fabric->senders.contains({each->peer, own.rank});
  });
}

void NcclCore::group_start() { open_group = {true, nullptr}; }

void NcclCore::add(Communicator communicator, Transfer transfer, const std::any& stream) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "a message");
  if (!open_group.is_open) misused(fmt::format("rank {}: a message outside of a group", found.rank));
  if (found.is_finalized) misused(fmt::format("rank {}: a message after the end", found.rank));
  if (transfer.peer < 0 || transfer.peer >= found.fabric->ranks) {
    misused(fmt::format("rank {}: a message to or from rank {}", found.rank, transfer.peer));
  }
  if (open_group.communicator != nullptr && open_group.communicator != communicator) {
    misused(fmt::format("rank {}: a group of two communicators", found.rank));
  }
  const bool is_made = std::ssize(found.fabric->members) == found.fabric->ranks;
  if (open_group.communicator == nullptr && (!is_made || found.looks > 0 || found.unlaunched)) {
    misused(fmt::format("rank {}: a message on a communicator that is in progress", found.rank));
  }
  open_group.communicator = communicator;
  if (!found.unlaunched) {
    found.unlaunched = std::make_shared<Group>(Group{&found, stream, {}});
    found.looks = looks_in_progress;
  }
  found.unlaunched->transfers.push_back(std::make_shared<Transfer>(std::move(transfer)));
}

void NcclCore::group_end() {
  const std::lock_guard lock(mutex_);
  if (!open_group.is_open) misused("a group ends that did not begin");
  auto* const found = static_cast<Member*>(open_group.communicator);
  open_group = {};
  if (found == nullptr) return;
  std::vector<std::string> texts;
  for (const auto& each : found->unlaunched->transfers) {
    auto& ends = each->is_send ? found->fabric->senders : found->fabric->receivers;
    ends.insert(each->is_send ? std::pair(found->rank, each->peer) : std::pair(each->peer, found->rank));
    texts.push_back(each->is_send ? fmt::format("send {} to {}", each->bytes, each->peer)
                                  : fmt::format("receive {} from {}", each->bytes, each->peer));
  }
  calls_[found->rank].push_back(fmt::format("{}: {}", found->number, fmt::join(texts, ", ")));
}

void NcclCore::post(const std::shared_ptr<Group>& group) {
  const Member& own = *group->member;
  if (own.is_aborted) return;
  for (const auto& each : group->transfers) {
    const auto ends = each->is_send ? std::pair(own.rank, each->peer) : std::pair(each->peer, own.rank);
    (each->is_send ? own.fabric->sends : own.fabric->receives)[ends].push_back(each);
    match(*own.fabric, ends);
  }
  changed();
}

void NcclCore::match(Fabric& fabric, const std::pair<int, int>& ends) {
  auto& sends = fabric.sends[ends];
  auto& receives = fabric.receives[ends];
  while (!sends.empty() && !receives.empty()) {
    const std::shared_ptr<Transfer> sent = std::exchange(sends.front(), {});
    const std::shared_ptr<Transfer> received = std::exchange(receives.front(), {});
    sends.pop_front();
    receives.pop_front();
    if (sent->bytes != received->bytes) {
      misused(fmt::format("rank {} sends {} bytes, rank {} receives {}", ends.first, sent->bytes, ends.second,
                          received->bytes));
    }
    matched(*sent, *received);
    received->sent = sent;
    sent->is_matched = received->is_matched = true;
  }
}

bool NcclCore::is_aborted(const Group& group) { return group.member->is_aborted; }
std::size_t NcclCore::number_of(const Group& group) { return group.member->number; }
int NcclCore::rank_of(const Group& group) { return group.member->rank; }

void NcclCore::finalize(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "finalize");
  found.is_finalized = true;
  found.looks = looks_in_progress;
  note(found, "finalize");
}

void NcclCore::destroy(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "destroy");
  if (!found.is_finalized || found.looks > 0) misused(fmt::format("rank {}: destroy before its end", found.rank));
  if (found.fabric->owes(found.rank)) misused(fmt::format("rank {}: an end with messages under way", found.rank));
  found.is_aborted = true;
  note(found, "destroy");
}

void NcclCore::abort(Communicator communicator) {
  const std::lock_guard lock(mutex_);
  Member& found = member(communicator, "abort");
  found.is_aborted = true;
  for (auto& [ends, queue] : found.fabric->sends) {
    if (ends.first == found.rank) queue.clear();
  }
  for (auto& [ends, queue] : found.fabric->receives) {
    if (ends.second == found.rank) queue.clear();
  }
  note(found, "abort");
  changed();
}

void NcclCore::note(const Member& member, const std::string& call) {
  calls_[member.rank].push_back(fmt::format("{} {}", call, member.number));
}

void NcclCore::fail(int rank, const std::string& error) {
  const std::lock_guard lock(mutex_);
  for (auto& each : members_) {
    if (each->rank == rank) each->error = error;
  }
}

std::vector<std::string> NcclCore::calls(int rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(rank);
  return found == calls_.end() ? std::vector<std::string>() : found->second;
}

}  // namespace dualpipe::test
