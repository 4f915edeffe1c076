#include "dualpipe/exec/transport/mpi_engine.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <chrono>
#include <exception>
#include <stdexcept>

#include "dualpipe/exec/replay/memory.h"

namespace dualpipe {
namespace {

constexpr int envelope_tag = 1;
constexpr int bytes_tag = 2;
constexpr std::size_t chunk_bytes = std::size_t{1} << 30U;  // MPI counts with int

// Between two looks of the engine's own thread.
constexpr auto nap_awaited = std::chrono::microseconds(50);
constexpr auto nap = std::chrono::microseconds(200);

// Calls `use(address, bytes)` for pieces that MPI can count.
template <typename Use>
void in_chunks(void* data, std::size_t bytes, const Use& use) {
  for (std::size_t begin = 0; begin < bytes; begin += chunk_bytes) {
    use(static_cast<char*>(data) + begin, static_cast<int>(std::min(chunk_bytes, bytes - begin)));
  }
}

}  // namespace

struct MpiEngine::Envelope {
  Parcel::Kind kind = Parcel::Kind::message;
  std::int32_t rank = 0;
  std::int32_t index = 0;
  std::int32_t run = 0;
  std::uint32_t tensors = 0;
  std::uint64_t note_bytes = 0;
  Op receive{};
  Clock::time_point sent{};
};

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
};

MpiEngine::MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver)
    : communicator_(communicator), receiver_(receiver) {
  int process = 0;
  int processes = 0;
  check(MPI_Comm_rank(communicator_, &process), "MPI_Comm_rank");
  check(MPI_Comm_size(communicator_, &processes), "MPI_Comm_size");
  for (int peer = 0; peer < processes; ++peer) {
    peers_.push_back(std::make_unique<Peer>());
    if (peer != process || from_itself) await_envelope(peer);
  }
}

void MpiEngine::start() {
  thread_ = std::jthread([this](const std::stop_token& ended) { run(ended); });
  pthread_setname_np(thread_.native_handle(), "mpi");
}

MpiEngine::~MpiEngine() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
  for (MPI_Request& each : requests_) {
    MPI_Cancel(&each);
    MPI_Request_free(&each);
  }
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
    for (at::Tensor& each : parcel.content) each = each.contiguous();
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
    std::vector<Delivery> complete;
    try {
      start_sends();
      test(complete);
    } catch (const std::exception& error) {
      is_broken_ = true;
      lock.unlock();
      receiver_.broken(error.what());
      return;
    }
    lock.unlock();
    for (auto& [from, parcel] : complete) receiver_.deliver(from, std::move(parcel));
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
    in_chunks(each.mutable_data_ptr(), each.nbytes(), start_bytes);
  }
}

// --- receives

void MpiEngine::await_envelope(int peer) {
  MPI_Request request = MPI_REQUEST_NULL;
  Envelope& envelope = peers_[static_cast<std::size_t>(peer)]->envelope;
  check(MPI_Irecv(&envelope, sizeof(Envelope), MPI_BYTE, peer, envelope_tag, communicator_, &request), "MPI_Irecv");
  requests_.push_back(request);
  jobs_.push_back({.step = Step::envelope, .peer = peer});
}

// The next envelope of this peer is awaited only when all of this parcel's bytes are: they come first.
void MpiEngine::take_envelope(int peer, std::vector<Delivery>& complete) {
  const Envelope& envelope = peers_[static_cast<std::size_t>(peer)]->envelope;
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
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(data, bytes, MPI_BYTE, peer, bytes_tag, communicator_, &request), "MPI_Irecv");
    requests_.push_back(request);
    jobs_.push_back({.step = Step::note, .peer = peer, .incoming = incoming});
    ++incoming->pending;
  });
  if (incoming->pending == 0) take_content(peer, incoming, complete);
}

void MpiEngine::take_content(int peer, const std::shared_ptr<Incoming>& incoming, std::vector<Delivery>& complete) {
  Parcel& parcel = incoming->parcel;
  if (incoming->tensors > 0) {
    const ChargeToNobody guard;
    for (const Form& form : receiver_.forms_of(parcel)) parcel.content.push_back(at::empty(form.sizes, form.type));
    assert(parcel.content.size() == incoming->tensors);
  }
  for (const at::Tensor& each : parcel.content) {
    in_chunks(each.mutable_data_ptr(), each.nbytes(), [&](void* data, int bytes) {
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Irecv(data, bytes, MPI_BYTE, peer, bytes_tag, communicator_, &request), "MPI_Irecv");
      requests_.push_back(request);
      jobs_.push_back({.step = Step::content, .peer = peer, .incoming = incoming});
      ++incoming->pending;
    });
  }
  await_envelope(peer);
  if (incoming->pending == 0) complete.emplace_back(peer, std::move(parcel));
}

// --- what is under way

void MpiEngine::test(std::vector<Delivery>& complete) {
  std::vector<int> ready(requests_.size());
  int count = 0;
  check(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, ready.data(), MPI_STATUSES_IGNORE),
        "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return;
  ready.resize(static_cast<std::size_t>(count));
  std::vector<Job> done;
  for (const int index : ready) done.push_back(std::move(jobs_[static_cast<std::size_t>(index)]));
  std::ranges::sort(ready, std::ranges::greater());
  for (const int index : ready) {  // from behind, so that those before stay in their places
    const auto i = static_cast<std::size_t>(index);
    requests_[i] = requests_.back();
    jobs_[i] = std::move(jobs_.back());
    requests_.pop_back();
    jobs_.pop_back();
  }
  for (const Job& job : done) finish(job, complete);
}

void MpiEngine::finish(const Job& job, std::vector<Delivery>& complete) {
  switch (job.step) {
    case Step::send:
      if (--job.outgoing->pending > 0) return;
      job.outgoing->departed->store(true, std::memory_order_release);
      --unsent_;
      return;
    case Step::envelope:
      return take_envelope(job.peer, complete);
    case Step::note:
      if (--job.incoming->pending == 0) take_content(job.peer, job.incoming, complete);
      return;
    case Step::content:
      if (--job.incoming->pending == 0) complete.emplace_back(job.peer, std::move(job.incoming->parcel));
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

}  // namespace dualpipe
