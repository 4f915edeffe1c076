// World::all_gather() among processes that send each other messages.
#include <algorithm>
#include <bit>
#include <iterator>
#include <stdexcept>

#include "dualpipe/exec/transport/engine_world.h"
#include "dualpipe/exec/transport/pack.h"

namespace dualpipe::detail::transport {
namespace {

// How many parts an all_gather passes on to the process at this distance, which has those up to there already.
int passed_on_at(int distance, int processes) { return std::min(distance, processes - distance); }

}  // namespace

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
// So each sends log2(processes) messages, rounded up, and each part comes to each process once. What does not come to
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
    engine_->send(to, {.kind = WireMessage::Kind::gather, .index = number, .run = run_, .note = packer.take()});
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
  const auto is_over = [&] { return gathered_.contains(key) || abort_flag_->aborted(); };
  const auto& [run, number, from] = key;
  if (!wait(deadline, is_over)) {
    const std::string absent = absent_from(number);
    abort_flag_->throw_if_aborted();
    if (!absent.empty()) {
      throw TimeoutError(fmt::format("{} did not come to {} within {}", absent, what, seconds(timeout_)));
    }
    deadline = Clock::now() + timeout_;  // the last one has just come
    if (!wait(deadline, is_over)) {
      throw TimeoutError(fmt::format("all processes came to {}, but what {} passes on there did not arrive within {}",
                                     what, name_of(from), seconds(timeout_)));
    }
  }
  abort_flag_->throw_if_aborted();
  const std::lock_guard lock(mutex_);
  return std::move(gathered_.extract(key).mapped());
}

// Who has not come, of those that answer, and who does not answer soon.
std::string EngineWorld::absent_from(int gather) {
  note([&] { presence_.assign(static_cast<std::size_t>(processes()), std::nullopt); });
  send_to_others({.kind = WireMessage::Kind::roll_call, .index = gather, .run = run_});
  const auto answered = [&](int other) { return presence_[static_cast<std::size_t>(other)]; };
  (void)wait(Clock::now() + std::min(timeout_, grace), [&] {
    return std::ranges::count_if(presence_, &std::optional<bool>::has_value) + 1 == processes() ||
           abort_flag_->aborted();
  });
  const std::lock_guard lock(mutex_);
  return names_if([&](int other) { return other != process() && !answered(other).value_or(false); });
}

void EngineWorld::check_same_place(const std::string& what, int other, const std::string& place) const {
  if (place == what) return;
  const bool is_first = process() < other;
  throw std::runtime_error(fmt::format(
      "process {} is at {}, and process {} at {}; were they started with the same command line?",
      is_first ? process() : other, is_first ? what : place, is_first ? other : process(), is_first ? place : what));
}

void EngineWorld::take_in_gather(int from, const WireMessage& message) {
  const int distance = (from + processes() - process()) % processes();
  if (!std::has_single_bit(static_cast<unsigned>(distance))) {
    throw std::runtime_error("parts of an all_gather, which it passes on to others");
  }
  std::vector<Contribution> passed_on;
  Unpacker unpacker(message.note);
  for (int i = 0; i < passed_on_at(distance, processes()); ++i) {
    auto what = unpacker.get<std::string>();
    passed_on.push_back({std::move(what), unpacker.get<std::string>()});
  }
  unpacker.expect_end();
  note([&] {
    if (message.run >= 0 && message.run < run_) return;  // it is over
    // Nobody comes to the next one before all have come to this one, nor to the next run.
    const int number_max = message.run == run_ ? gathers_begun_ : 0;
    if (message.run < 0 || message.run > run_ + 1 || message.index < 0 || message.index > number_max) {
      throw std::runtime_error(fmt::format("parts of all_gather {} of run {}, when {} of run {} have begun",
                                           message.index, message.run, gathers_begun_, run_));
    }
    if (!gathered_.try_emplace({message.run, message.index, from}, std::move(passed_on)).second) {
      throw std::runtime_error(fmt::format("parts of all_gather {} of run {}, twice", message.index, message.run));
    }
  });
}

void EngineWorld::answer_roll_call(int from, const WireMessage& message) {
  bool is_here = false;
  note([&] { is_here = message.run < run_ || (message.run == run_ && message.index < gathers_begun_); });
  engine_->send(
      from,
      {.kind = WireMessage::Kind::presence, .index = message.index, .run = message.run, .note = is_here ? "here" : ""});
}

void EngineWorld::take_in_presence(int from, const WireMessage& message) {
  note([&] {
    const bool was_asked = !presence_.empty() && message.run == run_ && message.index == gathers_begun_ - 1;
    if (was_asked) presence_[static_cast<std::size_t>(from)] = !message.note.empty();
  });
}

}  // namespace dualpipe::detail::transport
