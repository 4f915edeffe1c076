#include "dualpipe/exec/transport/mpi_engine.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/transport/build.h"

namespace dualpipe::detail::transport {

using detail::replay::text_of;

namespace {

// Between two looks of the engine's own thread.
constexpr auto nap_awaited = std::chrono::microseconds(50);
constexpr auto nap = std::chrono::microseconds(200);

// So long the end waits for what is under way.
constexpr auto end_wait = std::chrono::milliseconds(400);

void check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  throw std::runtime_error(fmt::format("{}: {}", call, std::string(text.data(), static_cast<std::size_t>(length))));
}

}  // namespace

// They outlive all that the process destroys at its end.
std::vector<MpiEngine::Remains>& MpiEngine::remains() {
  static auto* const all = new std::vector<Remains>;
  return *all;
}

bool MpiEngine::has_left_requests() {
  std::erase_if(remains(), [](Remains& each) {
    int is_complete = 0;
    const int result =
        MPI_Testall(static_cast<int>(each.requests.size()), each.requests.data(), &is_complete, MPI_STATUSES_IGNORE);
    return result == MPI_SUCCESS && is_complete != 0;
  });
  return !remains().empty();
}

MpiEngine::MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver, std::size_t piece)
    : communicator_(communicator), piece_bytes_(piece), receiver_(receiver) {
  int processes = 0;
  check(MPI_Comm_size(communicator_, &processes), "MPI_Comm_size");
  check_builds(processes);
  receives_ = from_itself || processes > 1;
  peers_.resize(static_cast<std::size_t>(processes));
}

void MpiEngine::check_builds(int processes) {
  constexpr std::size_t length = 256;
  std::string own = this_build();
  own.resize(length);  // what is shorter ends with zeros
  std::string all(length * static_cast<std::size_t>(processes), '\0');
  check(MPI_Allgather(own.data(), length, MPI_CHAR, all.data(), length, MPI_CHAR, communicator_), "MPI_Allgather");
  std::vector<std::string> builds;
  for (std::size_t begin = 0; begin < all.size(); begin += length)
    builds.emplace_back(all.substr(begin, length).c_str());
  check_same_build(builds);
}

void MpiEngine::start() {
  thread_ = std::jthread([this](const std::stop_token& ended) { run(ended); });
  pthread_setname_np(thread_.native_handle(), "mpi");
}

void MpiEngine::end() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

// A send cannot be cancelled (MPI does not promise it, and Open MPI does not do it), nor a receive that has its
// message: each is complete when the other end has done its part.
MpiEngine::~MpiEngine() {
  MpiEngine::end();
  const auto deadline = Clock::now() + end_wait;
  try {
    finish_requests();
    while (!requests_.empty() && Clock::now() < deadline) {
      std::this_thread::sleep_for(nap_awaited);
      finish_requests();
    }
  } catch (const std::exception&) {  // MPI has failed, and does not say what it has done
  }
  if (!requests_.empty()) remains().push_back({std::move(requests_), std::move(pieces_)});
}

void MpiEngine::run(const std::stop_token& ended) {
  prctl(PR_SET_TIMERSLACK, 1000UL);  // ns: short naps are short
  while (!ended.stop_requested()) {
    progress();
    std::this_thread::sleep_for(receiver_.is_awaited() ? nap_awaited : nap);
  }
}

void MpiEngine::send(int process, const WireMessage& message) {
  auto bytes = std::make_shared<const std::string>(bytes_of(message));
  ++unsent_;
  {
    const std::lock_guard lock(outgoing_mutex_);
    outgoing_.push_back({process, std::move(bytes)});
    ++queued_;
  }
  progress();
}

// Whoever has the lock does it for all, also what was queued meanwhile.
void MpiEngine::progress() {
  do {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || is_broken_) return;
    try {
      start_sends();
      start_receives();
      finish_requests();
      for (std::size_t from = 0; from < peers_.size(); ++from) take_in(static_cast<int>(from));
    } catch (const std::exception& error) {
      is_broken_ = true;
      lock.unlock();
      receiver_.broken(error.what());
      return;
    }
    tell(lock);
  } while (queued_.load() > 0);
}

// One thread at a time tells the receiver, so that it hears of everything in its order. The receiver may send.
void MpiEngine::tell(std::unique_lock<std::mutex>& lock) {
  if (is_telling_) return;
  is_telling_ = true;
  while (!news_.empty()) {
    News next = std::move(news_.front());
    news_.pop_front();
    lock.unlock();
    if (next.refused.empty()) {
      receiver_.deliver(next.from, std::move(next.message));
    } else {
      receiver_.refused(next.from, next.refused);
    }
    lock.lock();
  }
  is_telling_ = false;
}

void MpiEngine::add(MPI_Request request, std::shared_ptr<Piece> piece) {
  requests_.push_back(request);
  pieces_.push_back(std::move(piece));
}

void MpiEngine::start_sends() {
  while (queued_.load() > 0) {
    Outgoing next;
    {
      const std::lock_guard lock(outgoing_mutex_);
      next = std::move(outgoing_.front());
      outgoing_.pop_front();
      --queued_;
    }
    bool is_last = false;
    for (std::size_t begin = 0; !is_last; begin += piece_bytes_) {
      const std::size_t bytes = std::min(piece_bytes_, next.bytes->size() - begin);
      is_last = bytes < piece_bytes_;
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Isend(next.bytes->data() + begin, static_cast<int>(bytes), MPI_BYTE, next.process, tag, communicator_,
                      &request),
            "MPI_Isend");
      ++unsent_;
      add(request, std::make_shared<Piece>(Piece{.sent = next.bytes}));
    }
    --unsent_;
  }
}

void MpiEngine::start_receives() {
  while (receives_) {
    int is_there = 0;
    MPI_Message found = MPI_MESSAGE_NULL;
    MPI_Status status;
    check(MPI_Improbe(MPI_ANY_SOURCE, tag, communicator_, &is_there, &found, &status), "MPI_Improbe");
    if (is_there == 0) return;
    int bytes = 0;
    check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    auto piece = std::make_shared<Piece>();
    piece->bytes = static_cast<std::size_t>(bytes);
    piece->received = std::make_unique_for_overwrite<char[]>(piece->bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Imrecv(piece->received.get(), bytes, MPI_BYTE, &found, &request), "MPI_Imrecv");
    peers_[static_cast<std::size_t>(status.MPI_SOURCE)].coming.push_back(piece);
    add(request, std::move(piece));
  }
}

void MpiEngine::finish_requests() {
  if (requests_.empty()) return;
  std::vector<int> ready(requests_.size());
  int count = 0;
  check(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, ready.data(), MPI_STATUSES_IGNORE),
        "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return;
  for (const int index : std::span(ready).first(static_cast<std::size_t>(count))) {
    const std::shared_ptr<Piece> piece = std::exchange(pieces_[static_cast<std::size_t>(index)], nullptr);
    piece->is_there = true;
    if (piece->sent) --unsent_;
  }
  std::erase(pieces_, nullptr);
  std::erase(requests_, MPI_REQUEST_NULL);  // which those have become that are complete
}

// What has come from a process, in the order in which it was sent.
void MpiEngine::take_in(int from) {
  Peer& peer = peers_[static_cast<std::size_t>(from)];
  while (!peer.coming.empty() && peer.coming.front()->is_there) {
    const std::shared_ptr<Piece> piece = std::move(peer.coming.front());
    peer.coming.pop_front();
    if (peer.is_refused) continue;
    std::string_view bytes(piece->received.get(), piece->bytes);
    const bool is_last = bytes.size() < piece_bytes_;
    const bool is_whole = is_last && peer.begun.empty();
    if (!is_whole) peer.begun += bytes;
    if (!is_last) continue;
    if (!is_whole) bytes = peer.begun;
    News& own = news_.emplace_back(News{.from = from});
    try {
      own.message = message_of(bytes);
    } catch (const std::exception& error) {
      peer.is_refused = true;
      own.refused = text_of(error);
    }
    peer.begun = {};
  }
}

}  // namespace dualpipe::detail::transport
