#include "dualpipe/exec/transport/store_engine.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/memory.h"
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
// To the store: one sends, while the other waits for what comes.
constexpr int connections = 2;

std::string inbox_key(int process, std::int64_t number) { return fmt::format("inbox/{}/{}", process, number); }
std::string beat_key(int process) { return fmt::format("beat/{}", process); }

std::string first_line_of(const std::exception& error) {
  const std::string text = detail::replay::text_of(error);
  return text.substr(0, text.find('\n'));
}

// All but the tensors, in one order for both ends.
template <typename AnyParcel, typename Visit>
void for_each_field(AnyParcel& parcel, const Visit& visit) {
  visit(parcel.kind);
  visit(parcel.receive);
  visit(parcel.rank);
  visit(parcel.index);
  visit(parcel.run);
  visit(parcel.sent);
  visit(parcel.note);
}

}  // namespace

// What the engine and its threads share.
class StoreEngine::Work {
 public:
  Work(const Launch& launch, Receiver& receiver, std::chrono::nanoseconds timeout);

  // --- of the engine's owner: nothing here waits for the store
  // Returns when this process has joined the store; throws InputError where it cannot.
  void await_store();
  void start();
  void send(int process, const Parcel& parcel);
  [[nodiscard]] bool all_sent();
  void set_timeout(std::chrono::nanoseconds timeout);
  // The threads are to end, and call the receiver no more.
  void end();

  // --- of the threads
  void run_sender();
  void run_inbox();

 private:
  struct Letter {
    int process = 0;
    std::string bytes;
  };
  struct Heart {
    std::int64_t beats = 0;
    Clock::time_point heard{};
    bool is_lost = false;
  };

  [[nodiscard]] bool has_store() const { return launch_.process == 0 && !launch_.is_served; }
  template <typename Connect>
  [[nodiscard]] bool join(const Connect& connect);
  void connect_sender();
  void connect_inbox();
  [[nodiscard]] std::string cannot_reach(const std::string& reason) const;

  void send_all();
  [[nodiscard]] std::int64_t post(const Letter& letter);
  void look_whether_taken();
  void beat();
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

  Launch launch_;
  std::mutex receiver_mutex_;
  Receiver* receiver_;
  std::unique_ptr<StoreClient> sender_;  // of one thread, and the store itself, where this process has it
  std::unique_ptr<StoreClient> inbox_;   // of the other

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  int joined_ = 0;           // of the connections
  std::string cannot_join_;  // why
  bool is_started_ = false;
  std::deque<Letter> letters_;
  std::vector<std::int64_t> last_sent_;  // by process: the number of the last parcel, 0: none
  std::size_t unsent_ = 0;
  bool is_asked_ = false;  // whether what was sent has been taken,
  bool is_taken_ = false;  // and the answer
  std::chrono::nanoseconds timeout_;
  bool is_broken_ = false;
  bool is_ending_ = false;
  std::vector<Heart> hearts_;  // by process
};

StoreEngine::Work::Work(const Launch& launch, Receiver& receiver, std::chrono::nanoseconds timeout)
    : launch_(launch),
      receiver_(&receiver),
      last_sent_(static_cast<std::size_t>(launch.processes)),
      timeout_(timeout),
      hearts_(static_cast<std::size_t>(launch.processes)) {}

// --- the beginning

void StoreEngine::Work::await_store() {
  std::unique_lock lock(mutex_);
  const auto is_decided = [&] { return joined_ == connections || !cannot_join_.empty(); };
  if (!changed_.wait_for(lock, timeout_ + reason_wait, is_decided)) {
    cannot_join_ = cannot_reach(fmt::format("no answer within {}", seconds(timeout_)));
  }
  if (!cannot_join_.empty()) throw InputError(cannot_join_);
}

void StoreEngine::Work::start() {
  note([&] {
    is_started_ = true;
    for (Heart& each : hearts_) each.heard = Clock::now();
  });
}

// Returns whether the engine has then been started, too.
template <typename Connect>
bool StoreEngine::Work::join(const Connect& connect) {
  try {
    connect();
  } catch (const InputError& error) {
    note([&] { cannot_join_ = error.what(); });
  } catch (const std::exception& error) {
    const std::string reason = first_line_of(error);
    note([&] { cannot_join_ = cannot_reach(reason); });
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return is_started_ || is_ending_; });
  return is_started_;
}

void StoreEngine::Work::connect_sender() {
  sender_ = std::make_unique<StoreClient>(launch_, has_store(), timeout_);
  if (sender_->add(fmt::format("here/{}", launch_.process), 1) != 1) {
    throw InputError(
        fmt::format("two processes say that they are process {} of {}; the launcher must give each another number",
                    launch_.process, launch_.processes));
  }
  note([&] {
    launch_.port = sender_->port();
    ++joined_;
  });
}

void StoreEngine::Work::connect_inbox() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return joined_ > 0 || is_ending_; });
    if (is_ending_) return;
  }
  inbox_ = std::make_unique<StoreClient>(launch_, false, timeout_);
  note([&] { ++joined_; });
}

std::string StoreEngine::Work::cannot_reach(const std::string& reason) const {
  return fmt::format("process {} cannot {} at {}, port {} (MASTER_ADDR, MASTER_PORT): {}", launch_.process,
                     has_store() ? "make the store where all processes meet" : "reach process 0's store",
                     launch_.address, launch_.port, reason);
}

void StoreEngine::Work::set_timeout(std::chrono::nanoseconds timeout) {
  const std::lock_guard lock(mutex_);
  timeout_ = timeout;
  for (Heart& each : hearts_) each.heard = Clock::now();
}

// --- out

void StoreEngine::Work::run_sender() {
  if (!join([&] { connect_sender(); })) return;
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

void StoreEngine::Work::send(int process, const Parcel& parcel) {
  Packer packer;
  packer.put(launch_.process);
  for_each_field(parcel, [&](const auto& field) { packer.put(field); });
  packer.put(parcel.content.size());
  for (const at::Tensor& each : parcel.content) {
    const detail::replay::ChargeToNobody guard;
    const at::Tensor plain = each.defined() ? each.contiguous() : each;
    packer.put(each.defined() ? std::string(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()) : "");
  }
  note([&] {
    if (is_broken_) return;
    letters_.push_back({process, packer.take()});
    ++unsent_;
    is_taken_ = false;
  });
}

bool StoreEngine::Work::all_sent() {
  bool answer = false;
  note([&] {
    answer = is_broken_ || (unsent_ == 0 && is_taken_);  // if broken, nothing will go any more
    is_asked_ = !answer;
  });
  return answer;
}

void StoreEngine::Work::send_all() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto pause = std::max<std::chrono::nanoseconds>(timeout_ / beats_per_timeout, beat_shortest);
    changed_.wait_for(lock, pause, [&] { return !letters_.empty() || is_asked_ || is_ending_ || is_broken_; });
    if (is_broken_) return;
    const bool ends = is_ending_;
    const bool is_asked = std::exchange(is_asked_, false);
    const auto letters = std::exchange(letters_, {});
    lock.unlock();
    for (const Letter& each : letters) {
      const std::int64_t number = post(each);
      const std::lock_guard noting(mutex_);
      last_sent_[static_cast<std::size_t>(each.process)] = number;
      --unsent_;
    }
    if (ends) return;
    if (is_asked) look_whether_taken();
    beat();
    lock.lock();
  }
}

// Returns its number.
std::int64_t StoreEngine::Work::post(const Letter& letter) {
  const std::int64_t number = sender_->add(fmt::format("inbox/{}/count", letter.process), 1);
  sender_->set(inbox_key(letter.process, number), letter.bytes);
  return number;
}

void StoreEngine::Work::look_whether_taken() {
  std::vector<std::int64_t> last;
  {
    const std::lock_guard lock(mutex_);
    last = last_sent_;
  }
  for (int process = 0; process < launch_.processes; ++process) {
    const std::int64_t number = last[static_cast<std::size_t>(process)];
    if (number > 0 && sender_->has(inbox_key(process, number))) return;
  }
  const std::lock_guard lock(mutex_);
  is_taken_ = last == last_sent_ && letters_.empty();
}

// One after another: a beat of each is a counter, and reading it adds nothing.
void StoreEngine::Work::beat() {
  std::chrono::nanoseconds timeout{};
  Clock::time_point last{};
  {
    const std::lock_guard lock(mutex_);
    timeout = timeout_;
    last = hearts_[static_cast<std::size_t>(launch_.process)].heard;
  }
  const auto pause = std::max<std::chrono::nanoseconds>(timeout / beats_per_timeout, beat_shortest);
  if (Clock::now() - last < pause) return;
  for (int process = 0; process < launch_.processes; ++process) {
    const std::int64_t beats = sender_->add(beat_key(process), process == launch_.process ? 1 : 0);
    const std::lock_guard lock(mutex_);
    Heart& heart = hearts_[static_cast<std::size_t>(process)];
    if (beats != heart.beats) heart = {beats, Clock::now(), heart.is_lost};
  }
  for (int process = 0; process < launch_.processes; ++process) {
    {
      const std::lock_guard lock(mutex_);
      Heart& heart = hearts_[static_cast<std::size_t>(process)];
      // One that was never heard has not begun: who waits for it says what it did not come to.
      const bool has_begun = heart.beats > 0;
      if (!has_begun || heart.is_lost || Clock::now() - heart.heard < timeout_) continue;
      heart.is_lost = true;
    }
    tell([&](Receiver& receiver) { receiver.lost(process, timeout); });
  }
}

// --- in

// Ends at the letter without a content that this process sends to itself.
void StoreEngine::Work::run_inbox() {
  if (!join([&] { connect_inbox(); })) return;
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
  Parcel parcel;
  try {
    for_each_field(parcel, [&](auto& field) { unpacker.get(field); });
    if (unpacker.get<std::size_t>() > 0) {
      const detail::replay::ChargeToNobody guard;
      for (const Form& form : receiver.forms_of(parcel)) {
        const auto content = unpacker.get<std::string>();
        parcel.content.push_back(empty_of(form));
        const at::Tensor& made = parcel.content.back();
        if (content.size() != (made.defined() ? made.nbytes() : 0)) {
          throw std::runtime_error(fmt::format("{} bytes for {}", content.size(), to_text(form)));
        }
        if (content.empty()) continue;  // there is no memory to copy to
        std::memcpy(parcel.content.back().mutable_data_ptr(), content.data(), content.size());
      }
    }
    unpacker.expect_end();
  } catch (const std::exception& error) {
    return receiver.refused(from, detail::replay::text_of(error));
  }
  receiver.deliver(from, std::move(parcel));
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

void StoreEngine::Worker::start(const std::shared_ptr<Work>& work, void (Work::*run)(), const char* name) {
  std::promise<void> promise;
  end_ = promise.get_future();
  thread_ = std::thread([work, run, ended = std::move(promise)]() mutable {
    (work.get()->*run)();
    ended.set_value();
  });
  pthread_setname_np(thread_.native_handle(), name);
}

void StoreEngine::Worker::end_by(Clock::time_point deadline) {
  if (!thread_.joinable()) return;
  if (end_.wait_until(deadline) == std::future_status::ready) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

StoreEngine::Worker::~Worker() {
  if (thread_.joinable()) thread_.detach();
}

StoreEngine::StoreEngine(const Launch& launch, Receiver& receiver, std::chrono::nanoseconds timeout)
    : work_(std::make_shared<Work>(launch, receiver, timeout)) {
  try {
    sender_.start(work_, &Work::run_sender, "store send");
    inbox_.start(work_, &Work::run_inbox, "store receive");
    work_->await_store();
  } catch (const std::exception&) {
    end();
    throw;
  }
}

StoreEngine::~StoreEngine() { StoreEngine::end(); }

void StoreEngine::end() {
  work_->end();
  const auto deadline = Clock::now() + store_wait;
  sender_.end_by(deadline);
  inbox_.end_by(deadline);
}

void StoreEngine::start() { work_->start(); }

Departed StoreEngine::send(int process, Parcel parcel) {
  work_->send(process, parcel);
  return std::make_shared<std::atomic<bool>>(true);  // it is a copy
}

void StoreEngine::progress() {}

bool StoreEngine::all_sent() { return work_->all_sent(); }

void StoreEngine::set_timeout(std::chrono::nanoseconds timeout) { work_->set_timeout(timeout); }

}  // namespace dualpipe::detail::transport
