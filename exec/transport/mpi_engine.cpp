#include "dualpipe/exec/transport/mpi_engine.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string_view>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/transport/build.h"

namespace dualpipe::detail::transport {

using detail::replay::text_of;

namespace {

constexpr std::size_t chunk_bytes = std::size_t{1} << 30U;  // MPI counts with int

// Between two looks of the engine's own thread.
constexpr auto nap_awaited = std::chrono::microseconds(50);
constexpr auto nap = std::chrono::microseconds(200);

// So long the end waits for what is under way.
constexpr auto end_wait = std::chrono::milliseconds(400);

// Calls `use(address, bytes)` for pieces that MPI can count.
template <typename Use>
void in_chunks(void* data, std::size_t bytes, const Use& use) {
  for (std::size_t begin = 0; begin < bytes; begin += chunk_bytes) {
    use(static_cast<char*>(data) + begin, static_cast<int>(std::min(chunk_bytes, bytes - begin)));
  }
}

std::string with_length(const std::string& header) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header;
}

int class_of(int error) {
  int error_class = MPI_SUCCESS;
  MPI_Error_class(error, &error_class);
  return error_class;
}

}  // namespace

struct MpiEngine::Outgoing {
  int process = 0;
  WireMessage message;
  std::string header;  // with the number of its bytes before it
  std::size_t pending = 0;
  std::shared_ptr<std::atomic<bool>> completion = std::make_shared<std::atomic<bool>>(false);
};

struct MpiEngine::Incoming {
  std::string header;
  WireMessage message;
  std::size_t pending = 0;
};

struct MpiEngine::Peer {
  std::array<char, first_bytes> first_piece;
  bool is_refused = false;
};

// Of an engine that has ended, and what MPI may still read or write.
struct MpiEngine::Remains {
  std::vector<MPI_Request> requests;
  std::vector<Job> jobs;
  std::vector<std::unique_ptr<Peer>> peers;
};

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

MpiEngine::MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver)
    : communicator_(communicator), from_itself_(from_itself), receiver_(receiver) {
  int processes = 0;
  check(MPI_Comm_rank(communicator_, &process_), "MPI_Comm_rank");
  check(MPI_Comm_size(communicator_, &processes), "MPI_Comm_size");
  check_builds(processes);
  for (int peer = 0; peer < processes; ++peer) peers_.push_back(std::make_unique<Peer>());
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
  for (int peer = 0; peer < static_cast<int>(peers_.size()); ++peer) {
    if (peer != process_ || from_itself_) await_message(peer);
  }
  thread_ = std::jthread([this](const std::stop_token& ended) { run(ended); });
  pthread_setname_np(thread_.native_handle(), "mpi");
}

void MpiEngine::end() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

// A receive can be cancelled, and is complete soon after, unless its message is just coming. A send cannot (MPI does
// not promise it, and Open MPI does not do it): it is complete when the other end has taken it.
MpiEngine::~MpiEngine() {
  MpiEngine::end();
  drop_complete();
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].step != Step::send) MPI_Cancel(&requests_[i]);
  }
  const auto deadline = Clock::now() + end_wait;
  try {
    std::vector<int> ready;
    (void)test(ready);
    drop_complete();
    while (!requests_.empty() && Clock::now() < deadline) {
      std::this_thread::sleep_for(nap_awaited);
      (void)test(ready);
      drop_complete();
    }
  } catch (const std::exception&) {  // MPI has failed, and does not say what it has done
  }
  if (!requests_.empty()) remains().push_back({std::move(requests_), std::move(jobs_), std::move(peers_)});
}

void MpiEngine::run(const std::stop_token& ended) {
  prctl(PR_SET_TIMERSLACK, 1000UL);  // ns: short naps are short
  while (!ended.stop_requested()) {
    progress();
    std::this_thread::sleep_for(receiver_.is_awaited() ? nap_awaited : nap);
  }
}

SendCompletion MpiEngine::send(int process, WireMessage message) {
  make_contiguous(message);
  auto outgoing = std::make_shared<Outgoing>();
  outgoing->process = process;
  outgoing->header = with_length(header_of(message));
  outgoing->message = std::move(message);
  SendCompletion completion = outgoing->completion;
  ++unsent_;
  {
    const std::lock_guard lock(outgoing_mutex_);
    outgoing_.push_back(std::move(outgoing));
    ++queued_;
  }
  progress();
  return completion;
}

// Whoever has the lock does it for all, also what was queued meanwhile.
void MpiEngine::progress() {
  do {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || is_broken_) return;
    News news;
    try {
      start_sends();
      test_all(news);
    } catch (const std::exception& error) {
      is_broken_ = true;
      lock.unlock();
      receiver_.broken(error.what());
      return;
    }
    lock.unlock();
    for (auto& [from, message] : news.complete) receiver_.deliver(from, std::move(message));
    for (const auto& [from, reason] : news.refused) receiver_.refused(from, reason);
  } while (queued_.load() > 0);
}

// --- sends

void MpiEngine::start_sends() {
  while (queued_.load() > 0) {
    std::shared_ptr<Outgoing> next;
    {
      const std::lock_guard lock(outgoing_mutex_);
      next = std::move(outgoing_.front());
      outgoing_.pop_front();
      --queued_;
    }
    start_send(next);
  }
}

void MpiEngine::start_send(const std::shared_ptr<Outgoing>& outgoing) {
  const auto start = [&](void* data, int bytes, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(data, bytes, MPI_BYTE, outgoing->process, tag, communicator_, &request), "MPI_Isend");
    requests_.push_back(request);
    jobs_.push_back({.step = Step::send, .peer = outgoing->process, .outgoing = outgoing});
    ++outgoing->pending;
  };
  const auto start_all = [&](char* data, std::size_t bytes) {
    in_chunks(data, bytes, [&](void* chunk, int size) { start(chunk, size, content_tag); });
  };
  std::string& header = outgoing->header;
  const std::size_t first = std::min(header.size(), first_bytes);
  start(header.data(), static_cast<int>(first), header_tag);
  start_all(header.data() + first, header.size() - first);
  for_each_content(outgoing->message, start_all);
}

// --- receives

void MpiEngine::receive(const Job& job, void* data, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Irecv(data, job.bytes, MPI_BYTE, job.peer, tag, communicator_, &request), "MPI_Irecv");
  requests_.push_back(request);
  jobs_.push_back(job);
}

// Each piece is one more that the message waits for.
void MpiEngine::receive_all(const Job& job, char* data, std::size_t bytes) {
  in_chunks(data, bytes, [&](void* chunk, int size) {
    Job piece = job;
    piece.bytes = size;
    receive(piece, chunk, content_tag);
    ++job.incoming->pending;
  });
}

void MpiEngine::await_message(int peer) {
  receive({.step = Step::first_piece, .peer = peer, .bytes = static_cast<int>(first_bytes)},
          peers_[static_cast<std::size_t>(peer)]->first_piece.data(), header_tag);
}

// The next message of this peer is awaited only when all receives of this one are posted: they come first.
void MpiEngine::take_first_piece(int peer, std::size_t bytes, News& news) {
  const std::string_view piece(peers_[static_cast<std::size_t>(peer)]->first_piece.data(), bytes);
  std::uint64_t length = 0;
  if (bytes < sizeof(length)) return refuse(peer, fmt::format("{} bytes where a header belongs", bytes), news);
  std::memcpy(&length, piece.data(), sizeof(length));
  if (length > memory_of_this_host()) {
    return refuse(peer, fmt::format("a header of {} bytes, more than this host has memory", length), news);
  }
  const std::size_t expected = std::min(first_bytes, sizeof(length) + length);
  if (bytes != expected) return refuse(peer, fmt::format("{} bytes where {} belong", bytes, expected), news);
  const auto incoming = std::make_shared<Incoming>();
  incoming->header = piece.substr(sizeof(length));
  const std::size_t known = incoming->header.size();
  incoming->header.resize(length);
  receive_all({.step = Step::header, .peer = peer, .incoming = incoming}, incoming->header.data() + known,
              length - known);
  if (incoming->pending == 0) take_header(peer, incoming, news);
}

void MpiEngine::take_header(int peer, const std::shared_ptr<Incoming>& incoming, News& news) {
  try {
    incoming->message = message_of(incoming->header);
  } catch (const std::exception& error) {
    return refuse(peer, text_of(error), news);
  }
  const Job job{.step = Step::content, .peer = peer, .incoming = incoming};
  for_each_content(incoming->message, [&](char* data, std::size_t bytes) { receive_all(job, data, bytes); });
  await_message(peer);
  if (incoming->pending == 0) news.complete.emplace_back(peer, std::move(incoming->message));
}

// What comes after it belongs to nothing that is known.
void MpiEngine::refuse(int peer, std::string reason, News& news) {
  if (std::exchange(peers_[static_cast<std::size_t>(peer)]->is_refused, true)) return;
  news.refused.emplace_back(peer, std::move(reason));
}

// --- what is under way

// Which requests are complete, and are none any more; their statuses say how they ended. Returns how many.
int MpiEngine::test(std::vector<int>& ready) {
  ready.resize(requests_.size());
  statuses_.resize(requests_.size());
  int count = 0;
  const int result =
      MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, ready.data(), statuses_.data());
  const bool is_in_status = class_of(result) == MPI_ERR_IN_STATUS;
  if (!is_in_status) check(result, "MPI_Testsome");
  ready.resize(count == MPI_UNDEFINED ? 0 : static_cast<std::size_t>(count));
  for (std::size_t k = 0; k < ready.size(); ++k) {
    requests_[static_cast<std::size_t>(ready[k])] = MPI_REQUEST_NULL;
    if (!is_in_status) statuses_[k].MPI_ERROR = MPI_SUCCESS;  // MPI does not say so where all have succeeded
  }
  return static_cast<int>(ready.size());
}

void MpiEngine::test_all(News& news) {
  std::vector<int> ready;
  if (test(ready) == 0) return;
  std::vector<Job> done;
  for (const int index : ready) done.push_back(std::move(jobs_[static_cast<std::size_t>(index)]));
  drop_complete();
  for (std::size_t k = 0; k < done.size(); ++k) finish(done[k], statuses_[k], news);
}

void MpiEngine::drop_complete() {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (kept != i) {
      requests_[kept] = requests_[i];
      jobs_[kept] = std::move(jobs_[i]);
    }
    ++kept;
  }
  requests_.resize(kept);
  jobs_.resize(kept);
}

void MpiEngine::finish(const Job& job, const MPI_Status& status, News& news) {
  if (job.step == Step::send) {
    check(status.MPI_ERROR, "MPI_Isend");
    if (--job.outgoing->pending > 0) return;
    job.outgoing->completion->store(true, std::memory_order_release);
    --unsent_;
    return;
  }
  const bool is_too_long = class_of(status.MPI_ERROR) == MPI_ERR_TRUNCATE;
  if (!is_too_long) check(status.MPI_ERROR, "MPI_Irecv");
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (is_too_long || (bytes != job.bytes && job.step != Step::first_piece)) {
    return refuse(job.peer,
                  fmt::format("{} bytes where {} belong", is_too_long ? "more" : std::to_string(bytes), job.bytes),
                  news);
  }
  if (peers_[static_cast<std::size_t>(job.peer)]->is_refused) return;
  if (job.step == Step::first_piece) return take_first_piece(job.peer, static_cast<std::size_t>(bytes), news);
  if (--job.incoming->pending > 0) return;
  if (job.step == Step::header) return take_header(job.peer, job.incoming, news);
  news.complete.emplace_back(job.peer, std::move(job.incoming->message));
}

void MpiEngine::check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  throw std::runtime_error(fmt::format("{}: {}", call, std::string(text.data(), static_cast<std::size_t>(length))));
}

}  // namespace dualpipe::detail::transport
