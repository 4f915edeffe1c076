// Moves parcels between the processes of an MPI communicator. Private to exec/transport.
//
// A parcel is an envelope of fixed size, then the note, then the bytes of each tensor. Envelopes and bytes have a tag
// each, and MPI keeps the order of what one process sends to another under one tag; so whoever has an envelope knows
// which bytes come next, and no tag has to say which message it is of:
//
//     tag 1:  envelope A            envelope B      envelope C
//     tag 2:             A's bytes          B's bytes      …
//
// What a process sends that is not of this form is refused; no more is received from it then.
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

namespace dualpipe::detail::transport {

class MpiEngine final : public Engine {
 public:
  // How the parcel begins on its way.
  struct Envelope {
    Parcel::Kind kind = Parcel::Kind::message;
    std::int32_t rank = 0;
    std::int32_t index = 0;
    std::int32_t run = 0;
    std::uint32_t tensors = 0;
    std::uint64_t note_bytes = 0;
    Op receive{};
    Clock::time_point sent{};
  };
  static constexpr int envelope_tag = 1;
  static constexpr int bytes_tag = 2;

  // Collective. `communicator`: of this engine alone, with errors returned. Receives from all other processes; from
  // this one too if `from_itself`. Throws InputError where another process runs another build.
  MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver);
  // Waits a moment for what is under way. What MPI does not give back until then, as its other end does not go on, it
  // may still read or write: that stays as long as the process, and MPI cannot be finalized.
  ~MpiEngine() override;
  // Whether MPI still has any of that.
  [[nodiscard]] static bool has_left_requests();

  void start() override;
  void end() override;
  Departed send(int process, Parcel parcel) override;
  void progress() override;
  [[nodiscard]] bool all_sent() override { return unsent_.load() == 0; }

 private:
  struct Outgoing;
  struct Incoming;
  struct Peer;
  struct Remains;
  enum class Step : std::uint8_t { send, envelope, note, content };
  // What a request of MPI is for.
  struct Job {
    Step step;
    int peer = 0;
    int bytes = 0;
    std::shared_ptr<Outgoing> outgoing{};
    std::shared_ptr<Incoming> incoming{};
  };
  // What is to be told once the lock is free.
  struct News {
    std::vector<std::pair<int, Parcel>> complete;
    std::vector<std::pair<int, std::string>> refused;
  };

  [[nodiscard]] static std::vector<Remains>& remains();
  void check_builds(int processes);
  void run(const std::stop_token& ended);
  void start_sends();
  void start_send(Outgoing& outgoing, const std::shared_ptr<Outgoing>& shared);
  [[nodiscard]] int test(std::vector<int>& ready);
  void test_all(News& news);
  void finish(const Job& job, const MPI_Status& status, News& news);
  void receive(const Job& job, void* data, int tag);
  void await_envelope(int peer);
  void take_envelope(int peer, News& news);
  void take_content(int peer, const std::shared_ptr<Incoming>& incoming, News& news);
  void refuse(int peer, std::string reason, News& news);
  void drop_complete();
  void check(int result, const char* call);

  MPI_Comm communicator_;
  bool from_itself_;
  int process_ = 0;
  Receiver& receiver_;

  std::mutex mutex_;  // of MPI, and of what follows
  std::vector<MPI_Request> requests_;
  std::vector<Job> jobs_;             // of each request
  std::vector<MPI_Status> statuses_;  // of those that were complete in the last test
  std::vector<std::unique_ptr<Peer>> peers_;
  bool is_broken_ = false;

  std::mutex outgoing_mutex_;
  std::deque<std::shared_ptr<Outgoing>> outgoing_;
  std::atomic<std::size_t> queued_{0};
  std::atomic<std::size_t> unsent_{0};

  std::jthread thread_;
};

}  // namespace dualpipe::detail::transport
