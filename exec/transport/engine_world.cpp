#include "dualpipe/exec/transport/engine_world.h"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <thread>

#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/transport/pack.h"

namespace dualpipe {
namespace {

using namespace std::chrono_literals;

// After a failure, process 0 waits so long for the others, and they for it. Where mpirun has asked all to end (SIGTERM)
// it kills them a second later.
constexpr std::chrono::nanoseconds grace = 400ms;
constexpr std::chrono::nanoseconds grace_of_first_if_urgent = 750ms;
// One that has done its work waits so much longer for process 0, which simulates and writes files.
constexpr int patience_with_first = 10;
constexpr auto spin_time = 100us;
constexpr int clock_rounds = 64;

std::string pack(const Ending& ending) {
  Packer packer;
  packer.put(ending.failed);
  packer.put(ending.is_cause);
  packer.put(ending.text);
  return packer.take();
}

Ending unpack_ending(const std::string& bytes) {
  Unpacker unpacker(bytes);
  Ending ending;
  unpacker.get(ending.failed);
  unpacker.get(ending.is_cause);
  unpacker.get(ending.text);
  return ending;
}

// How many parts an all_gather passes on to the process at this distance, which has those up to there already.
int passed_on_at(int distance, int processes) { return std::min(distance, processes - distance); }

}  // namespace

EngineWorld::EngineWorld(int process, int processes, const EngineWorldOptions& options)
    : World(process, processes),
      options_(options),
      timeout_(options.timeout),
      records_(static_cast<std::size_t>(processes)),
      endings_(static_cast<std::size_t>(processes)),
      offsets_(static_cast<std::size_t>(processes)) {}

EngineWorld::~EngineWorld() { assert(!engine_ && "it would call what is gone"); }

void EngineWorld::connect(std::unique_ptr<Engine> engine) {
  engine_ = std::move(engine);
  engine_->start();
}

template <typename Condition>
bool EngineWorld::wait(Clock::time_point deadline, const Condition& condition) {
  const Watch watch(this);
  const auto spin_end = std::min(deadline, Clock::now() + spin_time);
  std::unique_lock lock(mutex_);
  while (!condition() && Clock::now() < spin_end) {
    lock.unlock();
    engine_->progress();
    std::this_thread::yield();
    lock.lock();
  }
  return changed_.wait_until(lock, deadline, condition);
}

// Bruck's algorithm (Bruck, Ho, Kipnis, Upfal and Weathersby: Efficient algorithms for all-to-all communications in
// multiport message-passing systems, 1997). A process has the parts of those from itself on, and after the last comes
// process 0; in each round it passes on what it has, and has twice as many after it:
//
//     5 processes      passes on to       gets from          has
//     process 0        -                  -                  0
//       distance 1     4: 0               1: 1               0 1
//       distance 2     3: 0 1             2: 2 3             0 1 2 3
//       distance 4     1: 0               4: 4               0 1 2 3 4
//
// So each sends log2(processes) parcels, rounded up, and each part comes to each process once. What does not come to
// one does not come to many: so the parts are compared at the end, when all have them.
std::vector<std::string> EngineWorld::all_gather(const std::string& what, std::string part) {
  int number = 0;
  note([&] { number = gathers_begun_++; });
  auto deadline = Clock::now() + timeout_;
  std::vector<Contribution> all;
  all.push_back({what, std::move(part)});
  for (int distance = 1; distance < processes(); distance *= 2) {
    Packer packer;
    for (int i = 0; i < passed_on_at(distance, processes()); ++i) {
      packer.put(all[static_cast<std::size_t>(i)].what);
      packer.put(all[static_cast<std::size_t>(i)].part);
    }
    const int to = (process() + processes() - distance) % processes();
    (void)engine_->send(to, {.kind = Parcel::Kind::gather, .index = number, .run = run_, .note = packer.take()});
    const int from = (process() + distance) % processes();
    std::ranges::move(passed_on(what, {run_, number, from}, deadline), std::back_inserter(all));
  }
  std::ranges::rotate(all, all.end() - process());  // the first one was this process's
  std::vector<std::string> parts;
  for (int other = 0; other < processes(); ++other) {
    auto& [place, brought] = all[static_cast<std::size_t>(other)];
    check_same_place(what, other, place);
    parts.push_back(std::move(brought));
  }
  return parts;
}

// Where nothing comes, it need not be the neighbour who is missing, but anybody further on: so all are asked.
std::vector<EngineWorld::Contribution> EngineWorld::passed_on(const std::string& what, GatherKey key,
                                                              Clock::time_point& deadline) {
  const auto is_over = [&] { return gathered_.contains(key) || verdict_->aborted(); };
  const auto& [run, number, from] = key;
  if (!wait(deadline, is_over)) {
    const std::string absent = absent_from(number);
    verdict_->throw_if_aborted();
    if (!absent.empty()) {
      throw TimeoutError(fmt::format("{} did not come to {} within {}", absent, what, seconds(timeout_)));
    }
    deadline = Clock::now() + timeout_;  // the last one has just come
    if (!wait(deadline, is_over)) {
      throw TimeoutError(fmt::format("all processes came to {}, but what {} passes on there did not arrive within {}",
                                     what, name_of(from), seconds(timeout_)));
    }
  }
  verdict_->throw_if_aborted();
  const std::lock_guard lock(mutex_);
  return std::move(gathered_.extract(key).mapped());
}

// Who has not come, of those that answer, and who does not answer soon.
std::string EngineWorld::absent_from(int gather) {
  note([&] { presence_.assign(static_cast<std::size_t>(processes()), std::nullopt); });
  send_to_others({.kind = Parcel::Kind::roll_call, .index = gather, .run = run_});
  const auto answered = [&](int other) { return presence_[static_cast<std::size_t>(other)]; };
  (void)wait(Clock::now() + std::min(timeout_, grace), [&] {
    return std::ranges::count_if(presence_, &std::optional<bool>::has_value) + 1 == processes() || verdict_->aborted();
  });
  const std::lock_guard lock(mutex_);
  return names_if([&](int other) { return other != process() && !answered(other).value_or(false); });
}

bool EngineWorld::has_come_to(int run, int gather) const {
  return run < run_ || (run == run_ && gather < gathers_begun_);
}

void EngineWorld::check_same_place(const std::string& what, int other, const std::string& place) const {
  if (place == what) return;
  const bool is_first = process() < other;
  throw std::runtime_error(fmt::format(
      "process {} is at {}, and process {} at {}; were they started with the same command line?",
      is_first ? process() : other, is_first ? what : place, is_first ? other : process(), is_first ? place : what));
}

std::vector<std::optional<std::string>> EngineWorld::hand_over(std::string part) {
  begin_grace();
  if (process() != 0) {
    (void)engine_->send(0, {.kind = Parcel::Kind::records, .run = run_, .note = std::move(part)});
    return {};
  }
  (void)wait(*grace_end_, [&] { return std::ranges::count_if(records_, &Part::has_value) + 1 == processes(); });
  const std::lock_guard lock(mutex_);
  records_[0] = std::move(part);
  return std::exchange(records_, std::vector<Part>(records_.size()));
}

std::vector<std::string> EngineWorld::end(const Ending& ending) {
  const Parcel parcel{.kind = Parcel::Kind::ending, .run = run_, .note = pack(ending)};
  if (ending.failed) {
    begin_grace();
    send_to_others(parcel);
  } else if (process() != 0) {
    (void)engine_->send(0, parcel);
  }
  return process() == 0 ? end_all(ending) : end_with_first(ending);
}

bool EngineWorld::close() {
  if (process() == 0) {
    send_to_others({.kind = Parcel::Kind::farewell, .note = all_ended_ ? "all" : ""});
    const auto deadline = Clock::now() + grace;
    while (!engine_->all_sent() && Clock::now() < deadline) {
      engine_->progress();
      std::this_thread::yield();
    }
  }
  if (!all_ended_) return false;
  disconnect();
  return true;
}

// --- Wire

bool EngineWorld::apart(int rank, int other) const {
  if (options_.through_engine) return rank != other;
  return process_of(rank, ranks_) != process_of(other, ranks_);
}

Departed EngineWorld::send(int to_rank, Parcel parcel) {
  parcel.run = run_;
  return engine_->send(process_of(to_rank, ranks_), std::move(parcel));
}

void EngineWorld::abort(const std::string& reason) {
  Parcel parcel{.kind = Parcel::Kind::abort, .note = reason};
  note([&] { parcel.run = run_; });  // may be called by the engine's thread, while a run begins
  send_to_others(parcel);
}

// --- Engine::Receiver

// On the engine's thread, or on one that waits for something else: neither has anything to do with what is wrong here.
void EngineWorld::deliver(int from, Parcel parcel) {
  try {
    take_in(from, std::move(parcel));
  } catch (const std::exception& error) {
    const std::string reason =
        fmt::format("process {} cannot take in what process {} sent: {}", process(), from, error.what());
    hear_abort({}, reason);
    abort(reason);
  }
}

void EngineWorld::take_in(int from, Parcel parcel) {
  const auto source = static_cast<std::size_t>(from);
  switch (parcel.kind) {
    case Parcel::Kind::message:
    case Parcel::Kind::part:
    case Parcel::Kind::sums:
      parcel.sent += std::chrono::nanoseconds(clock_behind(from));
      return hub_of(parcel)->deliver(std::move(parcel));
    case Parcel::Kind::gather:
      return take_in_gather(from, parcel);
    case Parcel::Kind::roll_call: {
      bool is_here = false;
      note([&] { is_here = has_come_to(parcel.run, parcel.index); });
      parcel.kind = Parcel::Kind::presence;
      parcel.note = is_here ? "here" : "";
      (void)engine_->send(from, std::move(parcel));
      return;
    }
    case Parcel::Kind::presence:
      return note([&] {
        const bool is_of_this = parcel.run == run_ && parcel.index + 1 == gathers_begun_;
        if (is_of_this && !presence_.empty()) presence_[source] = !parcel.note.empty();
      });
    case Parcel::Kind::records:
      return note([&] {
        if (parcel.run == run_) records_[source] = std::move(parcel.note);
      });
    case Parcel::Kind::ending: {
      const Ending ending = unpack_ending(parcel.note);
      note([&] { endings_[source] = std::move(parcel.note); });
      if (ending.failed) hear_abort({}, ending.text);  // it takes part in no run any more
      return;
    }
    case Parcel::Kind::farewell:
      return note([&] { farewell_ = std::move(parcel.note); });
    case Parcel::Kind::abort:
      return hear_abort(parcel.run, parcel.note);
    case Parcel::Kind::ping:
      (void)engine_->send(from, {.kind = Parcel::Kind::pong, .sent = Clock::now()});
      return;
    case Parcel::Kind::pong:
      return note([&] { first_clock_ = parcel.sent; });
  }
}

void EngineWorld::take_in_gather(int from, const Parcel& parcel) {
  const int distance = (from + processes() - process()) % processes();
  std::vector<Contribution> passed_on;
  Unpacker unpacker(parcel.note);
  for (int i = 0; i < passed_on_at(distance, processes()); ++i) {
    auto what = unpacker.get<std::string>();
    passed_on.push_back({std::move(what), unpacker.get<std::string>()});
  }
  note([&] { gathered_[{parcel.run, parcel.index, from}] = std::move(passed_on); });
}

void EngineWorld::broken(const std::string& reason) {
  hear_abort({}, fmt::format("process {}: {}", process(), reason));
}

void EngineWorld::lost(int process, std::chrono::nanoseconds silence) {
  std::string name;
  {
    const std::lock_guard lock(mutex_);
    name = name_of(process);
  }
  hear_abort({}, fmt::format("no sign of life from {} for {}", name, seconds(silence)));
}

void EngineWorld::hear_abort(std::optional<int> run, const std::string& reason) {
  std::shared_ptr<Hub> hub;
  {
    const std::lock_guard lock(mutex_);
    if (run && *run < run_) return;
    verdict_->abort(reason);
    if (!hubs_.empty()) hub = hubs_.back();
  }
  if (hub) hub->wake();
  note([] {});
}

// --- World

std::vector<std::unique_ptr<Transport>> EngineWorld::make_transports(const Placement& placement,
                                                                     const TransportOptions& options) {
  std::shared_ptr<Hub> made;
  {
    const std::lock_guard lock(mutex_);
    if (!hubs_.empty()) verdict_ = std::make_shared<Verdict>();
    for (const Part& part : endings_) {
      if (!part) continue;
      if (const Ending ending = unpack_ending(*part); ending.failed) verdict_->abort(ending.text);
    }
    ++run_;
    gathers_begun_ = 0;
    std::erase_if(gathered_, [&](const auto& each) { return std::get<0>(each.first) < run_; });
    grace_end_.reset();
    ranks_ = placement.ranks;
    timeout_ = options.timeout;
    made = std::make_shared<Hub>(placement, options, verdict_, spins(), static_cast<Wire*>(this));
    hubs_.push_back(made);
  }
  (void)all_gather("the start", {});  // before the first message all must be able to take it
  return transports_of(made, placement.ranks, ranks_here(placement.ranks));
}

std::shared_ptr<Hub> EngineWorld::hub() const {
  const std::lock_guard lock(mutex_);
  return hubs_.back();
}

std::shared_ptr<Verdict> EngineWorld::verdict() const {
  const std::lock_guard lock(mutex_);
  return verdict_;
}

// A launcher may have bound this process to some of the cores; and all processes share those of the host.
bool EngineWorld::spins() const {
  const auto ranks_max = (ranks_ + processes() - 1) / processes();
  return std::thread::hardware_concurrency() >= static_cast<unsigned>(ranks_max) &&
         sysconf(_SC_NPROCESSORS_ONLN) >= long{ranks_max} * options_.on_this_host;
}

std::vector<std::string> EngineWorld::end_all(const Ending& own) {
  const auto deadline = own.failed ? std::max(*grace_end_, Clock::now() + grace / 4) : Clock::now() + timeout_;
  all_ended_ = wait(deadline, [&] { return std::ranges::count_if(endings_, &Part::has_value) + 1 == processes(); });
  std::vector<std::string> causes;
  std::string heard = own.text;
  const std::lock_guard lock(mutex_);
  for (int each = 0; each < processes(); ++each) {
    const Part& part = endings_[static_cast<std::size_t>(each)];
    if (each != 0 && !part) continue;
    const Ending ending = each == 0 ? own : unpack_ending(*part);
    if (!ending.failed) continue;
    if (heard.empty()) heard = ending.text;
    if (ending.is_cause && std::ranges::find(causes, ending.text) == causes.end()) causes.push_back(ending.text);
  }
  if (causes.empty() && !heard.empty()) causes.push_back(heard);
  if (!all_ended_) {
    causes.push_back(fmt::format("no answer from {}", names_if([&](int each) {
                                   return each != 0 && !endings_[static_cast<std::size_t>(each)];
                                 })));
  }
  return causes;
}

std::vector<std::string> EngineWorld::end_with_first(const Ending& own) {
  const std::chrono::nanoseconds patience = own.is_urgent ? grace_of_first_if_urgent
                                            : own.failed  ? timeout_
                                                          : timeout_ * patience_with_first;
  const bool answered = wait(Clock::now() + patience, [&] { return farewell_.has_value(); });
  all_ended_ = answered && !farewell_->empty();
  if (answered) return {};
  std::vector<std::string> texts;
  if (own.failed) texts.push_back(own.text);
  texts.emplace_back("no answer from process 0, which writes traces and results");
  return texts;
}

void EngineWorld::begin_grace() {
  if (!grace_end_) grace_end_ = Clock::now() + std::min(timeout_, grace);
}

// --- to and from the others

void EngineWorld::send_to_others(const Parcel& parcel) {
  for (int other = 0; other < processes(); ++other) {
    if (other != process()) (void)engine_->send(other, parcel);
  }
}

std::string EngineWorld::name_of(int process) const {
  const int begin = process * ranks_ / processes();
  const int end = (process + 1) * ranks_ / processes();
  if (ranks_ == 0) return fmt::format("process {}", process);
  if (end == begin + 1) return fmt::format("rank {}", begin);
  return fmt::format("process {} (ranks {} to {})", process, begin, end - 1);
}

std::shared_ptr<Hub> EngineWorld::hub_of(const Parcel& parcel) const {
  const std::lock_guard lock(mutex_);
  assert(parcel.run <= run_ && "ranks send before all have begun");
  return hubs_[static_cast<std::size_t>(parcel.run) - 1];
}

// --- clocks

// Process 0 is asked for its time, again and again; the answer that came fastest tells most.
void EngineWorld::measure_clocks() {
  (void)all_gather("the start of the clocks", {});
  Time offset = 0;
  Time shortest = std::numeric_limits<Time>::max();
  for (int round = 0; process() != 0 && round < clock_rounds; ++round) {
    const Time asked = now();
    (void)engine_->send(0, {.kind = Parcel::Kind::ping});
    if (!wait(Clock::now() + timeout_, [&] { return first_clock_.has_value(); })) break;
    const Time answered = now();
    const std::lock_guard lock(mutex_);
    const Time there = time_of(*std::exchange(first_clock_, {}));
    if (answered - asked >= shortest) continue;
    shortest = answered - asked;
    offset = there - (asked + answered) / 2;
  }
  const auto all = all_gather("the clocks", {reinterpret_cast<const char*>(&offset), sizeof(offset)});
  for (std::size_t each = 0; each < all.size(); ++each) offsets_[each] = Unpacker(all[each]).get<Time>();
}

// To be added to a time of that process, it gives ours.
Time EngineWorld::clock_behind(int other) const { return offsets_[static_cast<std::size_t>(other)] - clock_offset(); }

}  // namespace dualpipe
