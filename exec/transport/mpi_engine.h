// Moves parcels between the processes of an MPI communicator. Private to exec/transport.
//
// A parcel is an envelope of fixed size, then the note, then the bytes of each tensor. Envelopes and bytes have a tag
// each, and MPI keeps the order of what one process sends to another under one tag; so whoever has an envelope knows
// which bytes come next, and no tag has to say which message it is of:
//
//     tag 1:  envelope A            envelope B      envelope C
//     tag 2:             A's bytes          B's bytes      …
//
// All calls of MPI are made under one lock (MPI_THREAD_SERIALIZED): by whoever calls progress() because it waits, and
// by a thread of the engine's own every now and then, so that what is large moves on while all ranks compute.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/parcel.h"

namespace dualpipe {

class MpiEngine final : public Engine {
 public:
  // `communicator`: of this engine alone, with errors returned. Receives from all other processes; from this one too if
  // `from_itself`.
  MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver);
  ~MpiEngine() override;

  void start() override;
  Departed send(int process, Parcel parcel) override;
  void progress() override;
  [[nodiscard]] bool all_sent() override { return unsent_.load() == 0; }

 private:
  struct Envelope;
  struct Outgoing;
  struct Incoming;
  struct Peer;
  enum class Step : std::uint8_t { send, envelope, note, content };
  // What a request of MPI is for.
  struct Job {
    Step step;
    int peer = 0;
    std::shared_ptr<Outgoing> outgoing{};
    std::shared_ptr<Incoming> incoming{};
  };
  using Delivery = std::pair<int, Parcel>;

  void run(const std::stop_token& ended);
  void start_sends();
  void start_send(Outgoing& outgoing, const std::shared_ptr<Outgoing>& shared);
  void test(std::vector<Delivery>& complete);
  void finish(const Job& job, std::vector<Delivery>& complete);
  void await_envelope(int peer);
  void take_envelope(int peer, std::vector<Delivery>& complete);
  void take_content(int peer, const std::shared_ptr<Incoming>& incoming, std::vector<Delivery>& complete);
  void check(int result, const char* call);

  MPI_Comm communicator_;
  Receiver& receiver_;

  std::mutex mutex_;  // of MPI, and of what follows
  std::vector<MPI_Request> requests_;
  std::vector<Job> jobs_;  // of each request
  std::vector<std::unique_ptr<Peer>> peers_;
  bool is_broken_ = false;

  std::mutex outgoing_mutex_;
  std::deque<std::shared_ptr<Outgoing>> outgoing_;
  std::atomic<std::size_t> queued_{0};
  std::atomic<std::size_t> unsent_{0};

  std::jthread thread_;
};

}  // namespace dualpipe
