#include "dualpipe/exec/transport/store_engine.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/store_client.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

using namespace std::chrono_literals;

// A wait for the inbox is renewed so often. LibTorch prints a warning when one ends.
constexpr auto inbox_wait = 1h;
// So many beats within the timeout, but not more often than this.
constexpr int beats_per_timeout = 10;
constexpr std::chrono::nanoseconds beat_shortest = 20ms;
// So long the process that has the store waits for the others to leave it.
constexpr auto leave_wait = 400ms;
// So long the end waits for what the store has still to answer, and for the others to leave it.
constexpr auto store_wait = 1s;
// LibTorch tells more of why it does not reach the store, when its own timeout is over.
constexpr auto reason_wait = 1s;

std::string inbox_key(int process, std::int64_t number) { return fmt::format("inbox/{}/{}", process, number); }
std::string beat_key(int process) { return fmt::format("beat/{}", process); }

std::chrono::nanoseconds beat_pause(std::chrono::nanoseconds timeout) {
  return std::max<std::chrono::nanoseconds>(timeout / beats_per_timeout, beat_shortest);
}

std::string first_line_of(const std::exception& error) {
  const std::string text = detail::replay::text_of(error);
  return text.substr(0, text.find('\n'));
}

}  // namespace

// What the engine and its threads share.
class StoreEngine::Work {
 public:
  Work(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Receiver& receiver,
       std::chrono::nanoseconds timeout);

  // --- of the engine's owner: nothing here waits for the store
  void send(int process, const WireMessage& message);
  [[nodiscard]] bool all_sent();
  void set_timeout(std::chrono::nanoseconds timeout);
  // The threads are to end, and call the receiver no more.
  void end();

  // --- of the threads
  [[nodiscard]] std::string cannot_reach(const std::string& reason) const;
  // Joins the store; throws InputError where this process cannot.
  void connect();
  void run_sender();
  void run_inbox();

 private:
  struct Outgoing {
    int process = 0;
    std::string bytes;
  };
  struct Heart {
    std::int64_t beats = 0;
    Clock::time_point heard{};
    bool is_lost = false;
  };

  [[nodiscard]] bool has_store() const { return launch_.process == 0 && !launch_.is_served; }

  void send_all();
  void post(const Outgoing& message);
  [[nodiscard]] bool are_all_taken() const;
  void beat(std::chrono::nanoseconds timeout, Clock::time_point since);
  void take_in(const std::string& bytes, Receiver& receiver) const;

  void leave();
  [[nodiscard]] bool is_ending();
  [[nodiscard]] bool is_broken();
  [[nodiscard]] std::string lost_store(const std::exception& error) const;
  void fail(const std::string& reason);

  // Calls the receiver, unless the engine has ended meanwhile.
  template <typename Call>
  void tell(const Call& call) {
    const std::lock_guard lock(receiver_mutex_);
    if (receiver_ != nullptr) call(*receiver_);
  }
  template <typename Action>
  void note(const Action& action) {
    {
      const std::lock_guard lock(mutex_);
      action();
    }
    changed_.notify_all();
  }

  const Launch launch_;
  const c10::intrusive_ptr<c10d::Store> store_;  // null: the launch's
  std::mutex receiver_mutex_;
  Receiver* receiver_;

  // --- of the sender's thread, or the one that joins the store
  std::unique_ptr<StoreClient> sender_;  // and the store itself, where this process has it
  std::vector<std::int64_t> last_sent_;  // by process: the number of the last message, 0: none
  std::vector<Heart> hearts_;            // by process
  Clock::time_point last_beat_{};

  std::unique_ptr<StoreClient> inbox_;  // of the other thread

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<Outgoing> outgoing_;
  bool is_asked_ = false;  // whether what was sent has been taken,
  bool is_taken_ = false;  // and the answer
  std::chrono::nanoseconds timeout_;
  Clock::time_point timeout_since_{};
  bool is_broken_ = false;
  bool is_ending_ = false;
};

StoreEngine::Work::Work(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Receiver& receiver,
                        std::chrono::nanoseconds timeout)
    : launch_(launch),
      store_(std::move(store)),
      receiver_(&receiver),
      last_sent_(static_cast<std::size_t>(launch.processes)),
      hearts_(static_cast<std::size_t>(launch.processes)),
      timeout_(timeout) {}

// --- the beginning

void StoreEngine::Work::connect() {
  try {
    sender_ = store_ ? std::make_unique<StoreClient>(*store_, launch_.run)
                     : std::make_unique<StoreClient>(launch_, has_store(), timeout_);
    if (sender_->add(fmt::format("here/{}", launch_.process), 1) != 1) {
      throw InputError(
          fmt::format("two processes say that they are process {} of {}; the launcher must give each another number",
                      launch_.process, launch_.processes));
    }
    Launch joined = launch_;
    joined.port = sender_->port();
    inbox_ = store_ ? std::make_unique<StoreClient>(*store_, launch_.run)
                    : std::make_unique<StoreClient>(joined, false, timeout_);
  } catch (const InputError&) {
    throw;
  } catch (const std::exception& error) {
    throw InputError(cannot_reach(first_line_of(error)));
  }
}

std::string StoreEngine::Work::cannot_reach(const std::string& reason) const {
  if (store_) return fmt::format("process {} cannot reach the store of its process group: {}", launch_.process, reason);
  return fmt::format("process {} cannot {} at {}, port {} (MASTER_ADDR, MASTER_PORT): {}", launch_.process,
                     has_store() ? "make the store where all processes meet" : "reach process 0's store",
                     launch_.address, launch_.port, reason);
}

void StoreEngine::Work::set_timeout(std::chrono::nanoseconds timeout) {
  const std::lock_guard lock(mutex_);
  timeout_ = timeout;
  timeout_since_ = Clock::now();
}

// --- out

void StoreEngine::Work::run_sender() {
  try {
    send_all();
  } catch (const std::exception& error) {
    fail(lost_store(error));
  }
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_ending_; });
  }
  try {
    leave();
  } catch (const std::exception&) {  // the store has gone before
  }
}

void StoreEngine::Work::send(int process, const WireMessage& message) {
  Packer packer;
  packer.put(launch_.process);
  packer.put(bytes_of(message));
  note([&] {
    if (is_broken_) return;
    outgoing_.push_back({process, packer.take()});
    is_taken_ = false;
  });
}

bool StoreEngine::Work::all_sent() {
  bool answer = false;
  note([&] {
    answer = is_broken_ || is_taken_;  // if broken, nothing will go any more
    is_asked_ = !answer;
  });
  return answer;
}

void StoreEngine::Work::send_all() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait_for(lock, beat_pause(timeout_),
                      [&] { return !outgoing_.empty() || is_asked_ || is_ending_ || is_broken_; });
    if (is_broken_) return;
    const bool ends = is_ending_;
    const bool is_asked = std::exchange(is_asked_, false);
    const auto outgoing = std::exchange(outgoing_, {});
    const auto timeout = timeout_;
    const auto timeout_since = timeout_since_;
    lock.unlock();
    for (const Outgoing& each : outgoing) post(each);
    const bool are_taken = is_asked && are_all_taken();
    if (!ends) beat(timeout, timeout_since);
    lock.lock();
    if (ends) return;
    if (is_asked) is_taken_ = are_taken && outgoing_.empty();
  }
}

void StoreEngine::Work::post(const Outgoing& message) {
  const std::int64_t number = sender_->add(fmt::format("inbox/{}/count", message.process), 1);
  sender_->set(inbox_key(message.process, number), message.bytes);
  last_sent_[static_cast<std::size_t>(message.process)] = number;
}

// Who takes a message removes it, and takes them in their order.
bool StoreEngine::Work::are_all_taken() const {
  for (int process = 0; process < launch_.processes; ++process) {
    const std::int64_t number = last_sent_[static_cast<std::size_t>(process)];
    if (number > 0 && sender_->has(inbox_key(process, number))) return false;
  }
  return true;
}

// A beat of each process is a counter, and reading it adds nothing. `since`: when the timeout began to count.
void StoreEngine::Work::beat(std::chrono::nanoseconds timeout, Clock::time_point since) {
  if (Clock::now() - last_beat_ < beat_pause(timeout)) return;
  last_beat_ = Clock::now();
  for (int process = 0; process < launch_.processes; ++process) {
    const std::int64_t beats = sender_->add(beat_key(process), process == launch_.process ? 1 : 0);
    Heart& heart = hearts_[static_cast<std::size_t>(process)];
    if (beats != heart.beats) heart = {beats, Clock::now(), heart.is_lost};
    // One that was never heard has not begun: who waits for it says what it did not come to.
    if (beats == 0 || heart.is_lost || Clock::now() - std::max(heart.heard, since) < timeout) continue;
    heart.is_lost = true;
    tell([&](Receiver& receiver) { receiver.lost(process, timeout); });
  }
}

// --- in

// Ends at the message without content that this process sends to itself.
void StoreEngine::Work::run_inbox() {
  for (std::int64_t number = 1;;) {
    std::optional<std::string> bytes;
    try {
      bytes = inbox_->take(inbox_key(launch_.process, number), inbox_wait);
    } catch (const std::exception& error) {
      return fail(lost_store(error));
    }
    if (bytes ? bytes->empty() : is_ending()) return;
    if (!bytes) continue;
    try {
      tell([&](Receiver& receiver) { take_in(*bytes, receiver); });
    } catch (const std::exception& error) {
      return fail(fmt::format("it cannot read what another process sent: {}", detail::replay::text_of(error)));
    }
    ++number;
  }
}

void StoreEngine::Work::take_in(const std::string& bytes, Receiver& receiver) const {
  Unpacker unpacker(bytes);
  const int from = unpacker.get<int>();
  if (from < 0 || from >= launch_.processes) throw std::runtime_error(fmt::format("there is no process {}", from));
  WireMessage message;
  try {
    message = message_of(unpacker.get_text());
    unpacker.expect_end();
  } catch (const std::exception& error) {
    return receiver.refused(from, detail::replay::text_of(error));
  }
  receiver.deliver(from, std::move(message));
}

// --- the end

void StoreEngine::Work::end() {
  note([&] { is_ending_ = true; });
  const std::lock_guard lock(receiver_mutex_);
  receiver_ = nullptr;
}

bool StoreEngine::Work::is_ending() {
  const std::lock_guard lock(mutex_);
  return is_ending_;
}

bool StoreEngine::Work::is_broken() {
  const std::lock_guard lock(mutex_);
  return is_broken_;
}

void StoreEngine::Work::leave() {
  (void)post({launch_.process, ""});  // it ends the other thread
  std::int64_t gone = sender_->add("gone", has_store() ? 0 : 1);
  if (!has_store() || is_broken()) return;
  const auto deadline = Clock::now() + leave_wait;
  while (gone + 1 < launch_.processes && Clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
    gone = sender_->add("gone", 0);
  }
}

std::string StoreEngine::Work::lost_store(const std::exception& error) const {
  const std::string reason = first_line_of(error);
  if (store_) return fmt::format("it has lost the store of its process group: {}", reason);
  return launch_.process == 0 ? fmt::format("its store failed: {}", reason)
                              : fmt::format("it has lost the store of process 0: {}", reason);
}

// Where this process is at its end itself it does not matter any more.
void StoreEngine::Work::fail(const std::string& reason) {
  bool is_news = false;
  note([&] { is_news = !std::exchange(is_broken_, true) && !is_ending_; });
  if (is_news) tell([&](Receiver& receiver) { receiver.broken(reason); });
}

// --- the engine

std::future<void> StoreEngine::run(void (Work::*part)(), const char* name) const {
  std::promise<void> at_end;
  std::future<void> end = at_end.get_future();
  std::thread thread([work = work_, part, at_end = std::move(at_end)]() mutable {
    std::exception_ptr failure;
    try {
      (work.get()->*part)();
    } catch (...) {
      failure = std::current_exception();
    }
    work.reset();
    if (failure) {
      at_end.set_exception_at_thread_exit(std::move(failure));
    } else {
      at_end.set_value_at_thread_exit();
    }
  });
  pthread_setname_np(thread.native_handle(), name);
  thread.detach();
  return end;
}

StoreEngine::StoreEngine(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Receiver& receiver,
                         std::chrono::nanoseconds timeout)
    : work_(std::make_shared<Work>(launch, std::move(store), receiver, timeout)) {
  std::future<void> connected = run(&Work::connect, "store connect");
  if (connected.wait_for(timeout + reason_wait) != std::future_status::ready) {
    throw InputError(work_->cannot_reach(fmt::format("no answer within {}", seconds(timeout))));
  }
  connected.get();
}

StoreEngine::~StoreEngine() { StoreEngine::end(); }

void StoreEngine::end() {
  work_->end();
  const auto deadline = Clock::now() + store_wait;
  for (const auto& each : ends_) (void)each.wait_until(deadline);
}

void StoreEngine::start() {
  ends_.push_back(run(&Work::run_sender, "store send"));
  ends_.push_back(run(&Work::run_inbox, "store receive"));
}

void StoreEngine::send(int process, const WireMessage& message) { work_->send(process, message); }

void StoreEngine::progress() {}

bool StoreEngine::all_sent() { return work_->all_sent(); }

void StoreEngine::set_timeout(std::chrono::nanoseconds timeout) { work_->set_timeout(timeout); }

}  // namespace dualpipe::detail::transport
