// Moves messages between the processes of an MPI communicator. Private to exec/transport.
//
// MPI counts the bytes of a message with an int. So what is longer goes in several pieces, all of one tag and of one
// length, but for the last: that is shorter, and may be empty. MPI keeps the order of what one process sends to another
// under one tag; so nothing else has to say which message a piece is of:
//
//     1 GiB  1 GiB  0.3 GiB │ 200 bytes │ 1 GiB  0 bytes │ …        three messages
//
// Where the bytes that a process sends are no message it is refused; nothing of what it sends then is taken in.
//
// All calls of MPI are made under one lock (MPI_THREAD_SERIALIZED): by whoever calls progress() because it waits, and
// by a thread of the engine's own every now and then, so that what is large moves on while all ranks compute.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/wire_message.h"

namespace dualpipe::detail::transport {

class MpiEngine final : public Engine {
 public:
  static constexpr int tag = 1;

  // Collective. `communicator`: of this engine alone, with errors returned. `from_itself`: whether it receives where
  // there is no other process. `piece`: as long as a piece is. Throws InputError where another process runs another
  // build.
  MpiEngine(MPI_Comm communicator, bool from_itself, Receiver& receiver, std::size_t piece = std::size_t{1} << 30U);
  // Waits a moment for what is under way. What MPI does not give back until then, as its other end does not go on, it
  // may still read or write: that stays as long as the process, and MPI cannot be finalized.
  ~MpiEngine() override;
  // Whether MPI still has any of that.
  [[nodiscard]] static bool has_left_requests();

  void start() override;
  void end() override;
  void send(int process, const WireMessage& message) override;
  void progress() override;
  [[nodiscard]] bool all_sent() override { return unsent_.load() == 0; }

 private:
  // What a request of MPI reads, or writes.
  struct Piece {
    std::unique_ptr<char[]> received{};         // of one that comes,
    std::size_t bytes = 0;                      // and how many
    bool is_there = false;                      // all of it has come
    std::shared_ptr<const std::string> sent{};  // of one that goes: the whole message
  };
  using Pieces = std::vector<std::shared_ptr<Piece>>;
  // What is left of an engine that has ended, and MPI may still read or write.
  struct Remains {
    std::vector<MPI_Request> requests;
    Pieces pieces;
  };
  struct Outgoing {
    int process = 0;
    std::shared_ptr<const std::string> bytes;
  };
  struct Peer {
    std::deque<std::shared_ptr<Piece>> coming{};  // in their order
    std::string begun{};                          // the pieces of a long message that have come
    bool is_refused = false;
  };
  // What is to be told while the lock is free.
  struct News {
    int from = 0;
    WireMessage message{};
    std::string refused{};  // why; empty: it is a message
  };

  [[nodiscard]] static std::vector<Remains>& remains();
  void check_builds(int processes);
  void run(const std::stop_token& ended);
  void start_sends();
  void start_receives();
  void finish_requests();
  void take_in(int from);
  void tell(std::unique_lock<std::mutex>& lock);
  void add(MPI_Request request, std::shared_ptr<Piece> piece);

  MPI_Comm communicator_;
  bool receives_ = false;
  const std::size_t piece_bytes_;
  Receiver& receiver_;

  std::mutex mutex_;  // of MPI, and of what follows
  std::vector<MPI_Request> requests_;
  Pieces pieces_;  // of each request
  std::vector<Peer> peers_;
  std::deque<News> news_;
  bool is_telling_ = false;
  bool is_broken_ = false;

  std::mutex outgoing_mutex_;
  std::deque<Outgoing> outgoing_;
  std::atomic<std::size_t> queued_{0};
  std::atomic<std::size_t> unsent_{0};  // pieces, and messages that are queued

  std::jthread thread_;
};

}  // namespace dualpipe::detail::transport
