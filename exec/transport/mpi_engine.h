// Moves messages between the processes of an MPI communicator. Private to exec/transport.
//
// A message is its header, with the number of its bytes before it, and the bytes of each tensor. As much of the header
// as fits into a first piece goes by a tag of its own, all the rest by another. MPI keeps the order of what one process
// sends to another under one tag; so whoever has a first piece knows which bytes come next, and no tag has to say which
// message it is of:
//
//     tag 1:  header A              header B       header C
//     tag 2:           A's content          B's content   …
//
// What a process sends that is not of this form is refused; no more is received from it then.
//
// All calls of MPI are made under one lock (MPI_THREAD_SERIALIZED): by whoever calls progress() because it waits, and
// by a thread of the engine's own every now and then, so that what is large moves on while all ranks compute.
#pragma once

#include <mpi.h>

#include <array>
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
#include "dualpipe/exec/transport/wire_message.h"

namespace dualpipe::detail::transport {

class MpiEngine final : public Engine {
 public:
  static constexpr int header_tag = 1;
  static constexpr int content_tag = 2;
  static constexpr std::size_t first_bytes = 512;  // of a first piece, at most

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
  SendCompletion send(int process, WireMessage message) override;
  void progress() override;
  [[nodiscard]] bool all_sent() override { return unsent_.load() == 0; }

 private:
  struct Outgoing;
  struct Incoming;
  struct Peer;
  struct Remains;
  enum class Step : std::uint8_t { send, first_piece, header, content };
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
    std::vector<std::pair<int, WireMessage>> complete;
    std::vector<std::pair<int, std::string>> refused;
  };

  [[nodiscard]] static std::vector<Remains>& remains();
  void check_builds(int processes);
  void run(const std::stop_token& ended);
  void start_sends();
  void start_send(const std::shared_ptr<Outgoing>& outgoing);
  [[nodiscard]] int test(std::vector<int>& ready);
  void test_all(News& news);
  void finish(const Job& job, const MPI_Status& status, News& news);
  void receive(const Job& job, void* data, int tag);
  void receive_all(const Job& job, char* data, std::size_t bytes);
  void await_message(int peer);
  void take_first_piece(int peer, std::size_t bytes, News& news);
  void take_header(int peer, const std::shared_ptr<Incoming>& incoming, News& news);
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
