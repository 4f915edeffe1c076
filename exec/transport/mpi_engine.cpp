#include "dualpipe/exec/transport/mpi_engine.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <stdexcept>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/build.h"

namespace dualpipe::detail::transport {

using detail::replay::ChargeToNobody;
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

int class_of(int error) {
  int error_class = MPI_SUCCESS;
  MPI_Error_class(error, &error_class);
  return error_class;
}

std::uint64_t memory_of_this_host() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

struct MpiEngine::Outgoing {
  int process = 0;
  Envelope envelope;
  Parcel parcel;
  std::size_t pending = 0;
  std::shared_ptr<std::atomic<bool>> departed = std::make_shared<std::atomic<bool>>(false);
};

struct MpiEngine::Incoming {
  Parcel parcel;
  std::size_t tensors = 0;
  std::size_t pending = 0;
};

struct MpiEngine::Peer {
  Envelope envelope;
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
    if (peer != process_ || from_itself_) await_envelope(peer);
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

Departed MpiEngine::send(int process, Parcel parcel) {
  auto outgoing = std::make_shared<Outgoing>();
  outgoing->process = process;
  outgoing->envelope = {.kind = parcel.kind,
                        .rank = parcel.rank,
                        .index = parcel.index,
                        .run = parcel.run,
                        .tensors = static_cast<std::uint32_t>(parcel.content.size()),
                        .note_bytes = parcel.note.size(),
                        .receive = parcel.receive,
                        .sent = parcel.sent};
  {
    const ChargeToNobody guard;
    for (at::Tensor& each : parcel.content) {
      if (each.defined()) each = each.contiguous();
    }
  }
  outgoing->parcel = std::move(parcel);
  Departed departed = outgoing->departed;
  ++unsent_;
  {
    const std::lock_guard lock(outgoing_mutex_);
    outgoing_.push_back(std::move(outgoing));
    ++queued_;
  }
  progress();
  return departed;
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
    for (auto& [from, parcel] : news.complete) receiver_.deliver(from, std::move(parcel));
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
    start_send(*next, next);
  }
}

void MpiEngine::start_send(Outgoing& outgoing, const std::shared_ptr<Outgoing>& shared) {
  const auto start = [&](void* data, int bytes, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(data, bytes, MPI_BYTE, outgoing.process, tag, communicator_, &request), "MPI_Isend");
    requests_.push_back(request);
    jobs_.push_back({.step = Step::send, .peer = outgoing.process, .outgoing = shared});
    ++outgoing.pending;
  };
  const auto start_bytes = [&](void* data, int bytes) { start(data, bytes, bytes_tag); };
  start(&outgoing.envelope, sizeof(Envelope), envelope_tag);
  in_chunks(outgoing.parcel.note.data(), outgoing.parcel.note.size(), start_bytes);
  for (const at::Tensor& each : outgoing.parcel.content) {
    if (each.defined()) in_chunks(each.mutable_data_ptr(), each.nbytes(), start_bytes);
  }
}

// --- receives

void MpiEngine::receive(const Job& job, void* data, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Irecv(data, job.bytes, MPI_BYTE, job.peer, tag, communicator_, &request), "MPI_Irecv");
  requests_.push_back(request);
  jobs_.push_back(job);
}

void MpiEngine::await_envelope(int peer) {
  receive({.step = Step::envelope, .peer = peer, .bytes = sizeof(Envelope)},
          &peers_[static_cast<std::size_t>(peer)]->envelope, envelope_tag);
}

// The next envelope of this peer is awaited only when all of this parcel's bytes are: they come first.
void MpiEngine::take_envelope(int peer, News& news) {
  const Envelope& envelope = peers_[static_cast<std::size_t>(peer)]->envelope;
  if (envelope.note_bytes > memory_of_this_host()) {
    return refuse(peer, fmt::format("a note of {} bytes, more than this host has memory", envelope.note_bytes), news);
  }
  auto incoming = std::make_shared<Incoming>();
  incoming->parcel = {.kind = envelope.kind,
                      .receive = envelope.receive,
                      .rank = envelope.rank,
                      .index = envelope.index,
                      .run = envelope.run,
                      .sent = envelope.sent,
                      .note = std::string(envelope.note_bytes, '\0')};
  incoming->tensors = envelope.tensors;
  in_chunks(incoming->parcel.note.data(), incoming->parcel.note.size(), [&](void* data, int bytes) {
    receive({.step = Step::note, .peer = peer, .bytes = bytes, .incoming = incoming}, data, bytes_tag);
    ++incoming->pending;
  });
  if (incoming->pending == 0) take_content(peer, incoming, news);
}

void MpiEngine::take_content(int peer, const std::shared_ptr<Incoming>& incoming, News& news) {
  Parcel& parcel = incoming->parcel;
  if (incoming->tensors > 0) {
    try {
      const ChargeToNobody guard;
      for (const Form& form : receiver_.forms_of(parcel)) parcel.content.push_back(empty_of(form));
    } catch (const std::exception& error) {
      return refuse(peer, text_of(error), news);
    }
  }
  if (parcel.content.size() != incoming->tensors) {
    return refuse(peer, fmt::format("{} tensors, where {} belong", incoming->tensors, parcel.content.size()), news);
  }
  for (const at::Tensor& each : parcel.content) {
    if (!each.defined()) continue;
    in_chunks(each.mutable_data_ptr(), each.nbytes(), [&](void* data, int bytes) {
      receive({.step = Step::content, .peer = peer, .bytes = bytes, .incoming = incoming}, data, bytes_tag);
      ++incoming->pending;
    });
  }
  await_envelope(peer);
  if (incoming->pending == 0) news.complete.emplace_back(peer, std::move(parcel));
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
    job.outgoing->departed->store(true, std::memory_order_release);
    --unsent_;
    return;
  }
  const bool is_too_long = class_of(status.MPI_ERROR) == MPI_ERR_TRUNCATE;
  if (!is_too_long) check(status.MPI_ERROR, "MPI_Irecv");
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (is_too_long || bytes != job.bytes) {
    return refuse(job.peer,
                  fmt::format("{} bytes where {} belong", is_too_long ? "more" : std::to_string(bytes), job.bytes),
                  news);
  }
  if (peers_[static_cast<std::size_t>(job.peer)]->is_refused) return;
  switch (job.step) {
    case Step::send:
      return;
    case Step::envelope:
      return take_envelope(job.peer, news);
    case Step::note:
      if (--job.incoming->pending == 0) take_content(job.peer, job.incoming, news);
      return;
    case Step::content:
      if (--job.incoming->pending == 0) news.complete.emplace_back(job.peer, std::move(job.incoming->parcel));
      return;
  }
}

void MpiEngine::check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  throw std::runtime_error(fmt::format("{}: {}", call, std::string(text.data(), static_cast<std::size_t>(length))));
}

}  // namespace dualpipe::detail::transport
