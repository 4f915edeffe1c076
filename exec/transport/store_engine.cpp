#include "dualpipe/exec/transport/store_engine.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

using namespace std::chrono_literals;

// A wait for the inbox is renewed so often. LibTorch prints a warning when one ends.
constexpr auto inbox_wait = 1h;
// So many beats within the timeout, but not more often than this.
constexpr int beats_per_timeout = 10;
constexpr std::chrono::nanoseconds beat_shortest = 20ms;
// So long the process that has the store waits for the others to leave it.
constexpr auto leave_wait = 400ms;

std::string inbox_key(int process, std::int64_t number) { return fmt::format("inbox/{}/{}", process, number); }
std::string beat_key(int process) { return fmt::format("beat/{}", process); }

std::string first_line_of(const std::exception& error) {
  const std::string text = text_of(error);
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

// One connection to the store, for one thread at a time: a wait keeps it busy.
class StoreEngine::Client {
 public:
  Client(const Launch& launch, bool makes_store, std::chrono::nanoseconds timeout) {
    c10d::TCPStoreOptions options;
    options.port = launch.port;
    options.isServer = makes_store;
    options.waitWorkers = false;
    options.timeout = std::chrono::ceil<std::chrono::milliseconds>(timeout);
    store_ = c10::make_intrusive<c10d::TCPStore>(launch.address, options);
    keys_ = c10::make_intrusive<c10d::PrefixStore>("dualpipe/" + launch.run, store_);
  }

  [[nodiscard]] std::uint16_t port() const { return store_->getPort(); }

  [[nodiscard]] std::int64_t add(const std::string& key, std::int64_t value) { return keys_->add(key, value); }
  void set(const std::string& key, const std::string& value) {
    keys_->set(key, std::vector<std::uint8_t>(value.begin(), value.end()));
  }
  [[nodiscard]] bool has(const std::string& key) { return keys_->check({key}); }
  // Nothing if it is not there in time.
  [[nodiscard]] std::optional<std::string> take(const std::string& key, std::chrono::milliseconds timeout) {
    try {
      keys_->wait({key}, timeout);
    } catch (const c10::DistStoreError&) {
      return std::nullopt;
    }
    const std::vector<std::uint8_t> value = keys_->get(key);
    keys_->deleteKey(key);
    return std::string(value.begin(), value.end());
  }

 private:
  c10::intrusive_ptr<c10d::TCPStore> store_;
  c10::intrusive_ptr<c10d::PrefixStore> keys_;
};

StoreEngine::StoreEngine(const Launch& launch, Receiver& receiver, std::chrono::nanoseconds timeout)
    : launch_(launch),
      receiver_(receiver),
      last_sent_(static_cast<std::size_t>(launch.processes)),
      timeout_(timeout),
      hearts_(static_cast<std::size_t>(launch.processes)) {
  const bool makes_store = launch.process == 0 && !launch.is_served;
  try {
    sender_ = std::make_unique<Client>(launch_, makes_store, timeout);
    launch_.port = sender_->port();
    inbox_ = std::make_unique<Client>(launch_, false, timeout);
  } catch (const std::exception& error) {
    throw InputError(fmt::format("process {} cannot {} at {}, port {} (MASTER_ADDR, MASTER_PORT): {}", launch.process,
                                 makes_store ? "make the store where all processes meet" : "reach process 0's store",
                                 launch.address, launch.port, first_line_of(error)));
  }
  if (sender_->add(fmt::format("here/{}", launch.process), 1) != 1) {
    throw InputError(
        fmt::format("two processes say that they are process {} of {}; the launcher must give each another number",
                    launch.process, launch.processes));
  }
}

void StoreEngine::start() {
  for (Heart& each : hearts_) each.heard = Clock::now();
  send_thread_ = std::jthread([this] { send_all(); });
  pthread_setname_np(send_thread_.native_handle(), "store send");
  receive_thread_ = std::jthread([this] { receive_all(); });
  pthread_setname_np(receive_thread_.native_handle(), "store receive");
}

StoreEngine::~StoreEngine() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  if (send_thread_.joinable()) send_thread_.join();  // its last letter ends the other thread
  if (receive_thread_.joinable()) receive_thread_.join();
  try {
    leave();
  } catch (const std::exception&) {  // the store has gone before
  }
}

void StoreEngine::leave() {
  const bool has_store = launch_.process == 0 && !launch_.is_served;
  std::int64_t gone = sender_->add("gone", has_store ? 0 : 1);
  if (!has_store || is_broken_) return;
  const auto deadline = Clock::now() + leave_wait;
  while (gone + 1 < launch_.processes && Clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
    gone = sender_->add("gone", 0);
  }
}

void StoreEngine::set_timeout(std::chrono::nanoseconds timeout) {
  const std::lock_guard lock(mutex_);
  timeout_ = timeout;
  for (Heart& each : hearts_) each.heard = Clock::now();
}

// --- out

Departed StoreEngine::send(int process, Parcel parcel) {
  Packer packer;
  packer.put(launch_.process);
  for_each_field(parcel, [&](const auto& field) { packer.put(field); });
  packer.put(parcel.content.size());
  for (const at::Tensor& each : parcel.content) {
    const ChargeToNobody guard;
    const at::Tensor plain = each.contiguous();
    packer.put(std::string(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()));
  }
  auto departed = std::make_shared<std::atomic<bool>>(true);  // it is a copy
  {
    const std::lock_guard lock(mutex_);
    if (is_broken_) return departed;
    letters_.push_back({process, packer.take(), departed});
    ++unsent_;
  }
  changed_.notify_all();
  return departed;
}

void StoreEngine::progress() {}

bool StoreEngine::all_sent() {
  std::vector<std::string> last;
  {
    const std::lock_guard lock(mutex_);
    if (is_broken_) return true;  // nothing will go any more
    if (unsent_ > 0) return false;
    for (int process = 0; process < launch_.processes; ++process) {
      const std::int64_t number = last_sent_[static_cast<std::size_t>(process)];
      if (number > 0) last.push_back(inbox_key(process, number));
    }
  }
  try {
    return std::ranges::none_of(last, [&](const std::string& key) { return sender_->has(key); });
  } catch (const std::exception& error) {
    fail(first_line_of(error));
    return true;
  }
}

void StoreEngine::send_all() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto pause = std::max<std::chrono::nanoseconds>(timeout_ / beats_per_timeout, beat_shortest);
    changed_.wait_for(lock, pause, [&] { return !letters_.empty() || is_ending_; });
    if (is_broken_) return;
    const bool ends = is_ending_;
    auto letters = std::exchange(letters_, {});
    lock.unlock();
    try {
      for (const Letter& each : letters) post(each);
      if (ends) return post({launch_.process, "", nullptr});
      beat();
    } catch (const std::exception& error) {
      return fail(first_line_of(error));
    }
    lock.lock();
  }
}

void StoreEngine::post(const Letter& letter) {
  const std::int64_t number = sender_->add(fmt::format("inbox/{}/count", letter.process), 1);
  sender_->set(inbox_key(letter.process, number), letter.bytes);
  if (!letter.departed) return;
  const std::lock_guard lock(mutex_);
  last_sent_[static_cast<std::size_t>(letter.process)] = number;
  --unsent_;
}

// One after another: a beat of each is a counter, and reading it adds nothing.
void StoreEngine::beat() {
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
      if (heart.is_lost || Clock::now() - heart.heard < timeout_) continue;
      heart.is_lost = true;
    }
    receiver_.lost(process, timeout);
  }
}

// --- in

// Ends at the letter without a content that this process sends to itself.
void StoreEngine::receive_all() {
  try {
    for (std::int64_t number = 1;;) {
      const auto bytes = inbox_->take(inbox_key(launch_.process, number), inbox_wait);
      if (is_broken()) return;
      if (!bytes) continue;
      if (bytes->empty()) return;
      take_in(*bytes);
      ++number;
    }
  } catch (const std::exception& error) {
    fail(first_line_of(error));
  }
}

void StoreEngine::take_in(const std::string& bytes) {
  Unpacker unpacker(bytes);
  const int from = unpacker.get<int>();
  Parcel parcel;
  for_each_field(parcel, [&](auto& field) { unpacker.get(field); });
  if (unpacker.get<std::size_t>() > 0) {
    const ChargeToNobody guard;
    for (const Form& form : receiver_.forms_of(parcel)) {
      const auto content = unpacker.get<std::string>();
      parcel.content.push_back(at::empty(form.sizes, form.type));
      assert(content.size() == parcel.content.back().nbytes());
      if (content.empty()) continue;  // there is no memory to copy to
      std::memcpy(parcel.content.back().mutable_data_ptr(), content.data(), content.size());
    }
  }
  receiver_.deliver(from, std::move(parcel));
}

bool StoreEngine::is_broken() {
  const std::lock_guard lock(mutex_);
  return is_broken_;
}

// Where this process is at its end itself it does not matter any more.
void StoreEngine::fail(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(is_broken_, true) || is_ending_) return;
  }
  changed_.notify_all();
  receiver_.broken(launch_.process == 0 ? fmt::format("its store failed: {}", reason)
                                        : fmt::format("it has lost the store of process 0: {}", reason));
}

}  // namespace dualpipe
