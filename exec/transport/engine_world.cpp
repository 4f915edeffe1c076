#include "dualpipe/exec/transport/engine_world.h"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <limits>
#include <stdexcept>
#include <thread>

#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/transport/pack.h"

namespace dualpipe::detail::transport {

using detail::replay::now;
using detail::replay::text_of;
using detail::replay::time_of;

namespace {

using namespace std::chrono_literals;

// Where mpirun has asked all to end (SIGTERM) it kills them a second later.
constexpr std::chrono::nanoseconds grace_of_first_if_urgent = 750ms;
// One that has done its work waits so much longer for process 0, which simulates and writes files.
constexpr int patience_with_first = 10;
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
  unpacker.expect_end();
  return ending;
}

// Sums of what a few clocks show do not overflow.
void check_time(Time time) {
  constexpr Time years_30 = 30LL * 365 * 24 * 3600 * 1'000'000'000;
  if (time < -years_30 || time > years_30) {
    throw std::runtime_error(fmt::format("a time of {} ns, which no clock of a running machine shows", time));
  }
}

void check_is_of_first(int from, std::string_view what) {
  if (from != 0) throw std::runtime_error(fmt::format("{}, which process 0 alone sends", what));
}

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
  try {
    engine_->start();
  } catch (...) {
    engine_.reset();
    throw;
  }
}

// What the engine still delivers is answered through it: it is there until nothing is delivered any more.
void EngineWorld::disconnect() {
  if (engine_) engine_->end();
  engine_.reset();
}

std::vector<std::optional<std::string>> EngineWorld::hand_over(std::string part) {
  begin_grace();
  if (process() != 0) {
    engine_->send(0, {.kind = WireMessage::Kind::records, .run = run_, .note = std::move(part)});
    return {};
  }
  (void)wait(*grace_end_, [&] { return std::ranges::count_if(records_, &Part::has_value) + 1 == processes(); });
  const std::lock_guard lock(mutex_);
  records_[0] = std::move(part);
  return std::exchange(records_, std::vector<Part>(records_.size()));
}

std::vector<std::string> EngineWorld::end(const Ending& ending) {
  const WireMessage message{.kind = WireMessage::Kind::ending, .run = run_, .note = pack(ending)};
  if (ending.failed) {
    begin_grace();
    send_to_others(message);
  } else if (process() != 0) {
    engine_->send(0, message);
  }
  return process() == 0 ? end_all(ending) : end_with_first(ending);
}

bool EngineWorld::close() {
  if (process() == 0) {
    send_to_others({.kind = WireMessage::Kind::farewell, .note = all_ended_ ? "all" : ""});
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

// --- RemoteLink

bool EngineWorld::are_apart(int rank, int other) const {
  if (options_.through_engine) return rank != other;
  return process_of(rank, ranks_) != process_of(other, ranks_);
}

void EngineWorld::send(int to_rank, WireMessage message) {
  message.run = run_;
  engine_->send(process_of(to_rank, ranks_), message);
}

void EngineWorld::abort(const std::string& reason) {
  WireMessage message{.kind = WireMessage::Kind::abort, .note = reason};
  note([&] { message.run = run_; });  // may be called by the engine's thread, while a run begins
  send_to_others(message);
}

// --- Engine::Receiver

// On the engine's thread, or on one that waits for something else: neither has anything to do with what is wrong here.
void EngineWorld::deliver(int from, WireMessage message) {
  try {
    take_in(from, std::move(message));
  } catch (const std::exception& error) {
    refused(from, text_of(error));
  }
}

void EngineWorld::refused(int from, const std::string& reason) {
  const std::string text = fmt::format("process {} cannot take in what process {} sent: {}", process(), from, reason);
  hear_abort({}, text);
  abort(text);
}

// Whatever it is that another process sends, it does no harm here: what none would have sent is an error.
void EngineWorld::take_in(int from, WireMessage message) {
  if (from < 0 || from >= processes()) throw std::runtime_error(fmt::format("there are {} processes", processes()));
  const auto source = static_cast<std::size_t>(from);
  switch (message.kind) {
    case WireMessage::Kind::message:
    case WireMessage::Kind::part:
    case WireMessage::Kind::sums:
      return take_in_message(from, std::move(message));
    case WireMessage::Kind::gather:
      return take_in_gather(from, message);
    case WireMessage::Kind::roll_call:
      return answer_roll_call(from, message);
    case WireMessage::Kind::presence:
      return take_in_presence(from, message);
    case WireMessage::Kind::records:
      return note([&] {
        if (message.run == run_) records_[source] = std::move(message.note);
      });
    case WireMessage::Kind::ending: {
      const Ending ending = unpack_ending(message.note);
      note([&] { endings_[source] = std::move(message.note); });
      if (ending.failed) hear_abort({}, ending.text);  // it takes part in no run any more
      return;
    }
    case WireMessage::Kind::farewell:
      check_is_of_first(from, "a farewell");
      return note([&] { farewell_ = std::move(message.note); });
    case WireMessage::Kind::abort:
      return hear_abort(message.run, message.note);
    case WireMessage::Kind::ping:
      engine_->send(from, {.kind = WireMessage::Kind::pong, .sent = Clock::now()});
      return;
    case WireMessage::Kind::pong:
      check_is_of_first(from, "the time");
      check_time(message.sent.time_since_epoch().count());
      return note([&] { first_clock_ = message.sent; });
  }
  throw std::runtime_error(fmt::format("a message of kind {}, which there is not", static_cast<int>(message.kind)));
}

void EngineWorld::take_in_message(int from, WireMessage message) {
  const std::shared_ptr<MessageRouter> router = router_of(message);
  const MessageRouter::Route route = router->route_of(message);
  if (process_of(route.from, router->ranks()) != from || process_of(route.to, router->ranks()) != process()) {
    throw std::runtime_error(fmt::format("what rank {} sends to rank {}, which are not theirs", route.from, route.to));
  }
  check_time(message.sent.time_since_epoch().count());
  message.sent = std::min(message.sent + std::chrono::nanoseconds(clock_behind(from)), Clock::now());
  router->deliver(std::move(message));
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
  std::shared_ptr<MessageRouter> router;
  {
    const std::lock_guard lock(mutex_);
    if (run && *run < run_) return;
    abort_flag_->abort(reason);
    if (!routers_.empty()) router = routers_.back();
  }
  if (router) router->wake();
  note([] {});
}

void EngineWorld::interrupt() {
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    text = fmt::format("{} was interrupted", name_of(process()));
  }
  hear_abort({}, text);
  abort(text);
}

// --- World

std::vector<std::unique_ptr<Transport>> EngineWorld::make_transports(const Placement& placement,
                                                                     const TransportOptions& options) {
  std::shared_ptr<MessageRouter> made;
  {
    const std::lock_guard lock(mutex_);
    if (!routers_.empty()) abort_flag_ = std::make_shared<AbortFlag>();
    for (const Part& part : endings_) {
      if (!part) continue;
      if (const Ending ending = unpack_ending(*part); ending.failed) abort_flag_->abort(ending.text);
    }
    ++run_;
    gathers_begun_ = 0;
    std::erase_if(gathered_, [&](const auto& each) { return std::get<0>(each.first) < run_; });
    grace_end_.reset();
    ranks_ = placement.ranks;
    timeout_ = options.timeout;
    made = std::make_shared<MessageRouter>(placement, options, abort_flag_, spins(), static_cast<RemoteLink*>(this));
    routers_.push_back(made);
  }
  (void)all_gather("the start", {});  // before the first message all must be able to take it
  return transports_of(made, placement.ranks, ranks_here(placement.ranks));
}

std::shared_ptr<MessageRouter> EngineWorld::router() const {
  const std::lock_guard lock(mutex_);
  return routers_.back();
}

std::shared_ptr<AbortFlag> EngineWorld::abort_flag() const {
  const std::lock_guard lock(mutex_);
  return abort_flag_;
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

void EngineWorld::send_to_others(const WireMessage& message) {
  for (int other = 0; other < processes(); ++other) {
    if (other != process()) engine_->send(other, message);
  }
}

std::string EngineWorld::name_of(int process) const {
  const int begin = process * ranks_ / processes();
  const int end = (process + 1) * ranks_ / processes();
  if (ranks_ == 0) return fmt::format("process {}", process);
  if (end == begin + 1) return fmt::format("rank {}", begin);
  return fmt::format("process {} (ranks {} to {})", process, begin, end - 1);
}

// Of a run that has begun here: ranks send when all have begun.
std::shared_ptr<MessageRouter> EngineWorld::router_of(const WireMessage& message) const {
  const std::lock_guard lock(mutex_);
  if (message.run < 1 || message.run > run_) {
    throw std::runtime_error(fmt::format("a message of run {}; this is run {}", message.run, run_));
  }
  return routers_[static_cast<std::size_t>(message.run) - 1];
}

// --- clocks

// Process 0 is asked for its time, again and again; the answer that came fastest tells most.
void EngineWorld::measure_clocks() {
  (void)all_gather("the start of the clocks", {});
  Time offset = 0;
  Time shortest = std::numeric_limits<Time>::max();
  for (int round = 0; process() != 0 && round < clock_rounds; ++round) {
    const Time asked = now();
    engine_->send(0, {.kind = WireMessage::Kind::ping});
    if (!wait(Clock::now() + timeout_, [&] { return first_clock_.has_value(); })) break;
    const Time answered = now();
    const std::lock_guard lock(mutex_);
    const Time there = time_of(*std::exchange(first_clock_, {}));
    if (answered - asked >= shortest) continue;
    shortest = answered - asked;
    offset = there - (asked + answered) / 2;
  }
  const auto all = all_gather("the clocks", {reinterpret_cast<const char*>(&offset), sizeof(offset)});
  for (std::size_t each = 0; each < all.size(); ++each) {
    Unpacker unpacker(all[each]);
    unpacker.get(offsets_[each]);
    check_time(offsets_[each]);
  }
}

// To be added to a time of that process, it gives ours.
Time EngineWorld::clock_behind(int other) const { return offsets_[static_cast<std::size_t>(other)] - clock_offset(); }

}  // namespace dualpipe::detail::transport
