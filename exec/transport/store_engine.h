// Moves parcels between processes through a TCP store of LibTorch's (c10d::TCPStore). Private to exec/transport.
//
// The store has an inbox for each process, of numbered parcels; a sender draws the next number:
//
//     sender    n = add("inbox/2/count", 1)   set("inbox/2/<n>", parcel)
//     process 2                                                            wait("inbox/2/<n>") → get → delete
//
// It is for what is small: the beginning and the end of a run, sums between steps, what messages look like.
//
// Each process also counts a beat up; whose beat stands still for long is lost.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/launch.h"

namespace dualpipe {

class StoreEngine final : public Engine {
 public:
  // Joins the store; process 0 makes it, if nobody else has. Throws InputError saying what to do where it cannot be
  // made, or reached within the timeout, or another process says that it is this one.
  StoreEngine(const Launch& launch, Receiver& receiver, std::chrono::nanoseconds timeout);
  // Where this process has the store, it waits a moment for the others to leave it.
  ~StoreEngine() override;

  void start() override;
  Departed send(int process, Parcel parcel) override;
  void progress() override;
  // Whether all was taken by those whom it was sent to.
  [[nodiscard]] bool all_sent() override;
  // Whose beat stands still for so long is lost. At first: the constructor's.
  void set_timeout(std::chrono::nanoseconds timeout);

 private:
  class Client;
  struct Letter {
    int process = 0;
    std::string bytes;
    std::shared_ptr<std::atomic<bool>> departed;
  };

  void send_all();
  void post(const Letter& letter);
  void beat();
  void receive_all();
  void take_in(const std::string& bytes);
  [[nodiscard]] bool is_broken();
  void fail(const std::string& reason);
  void leave();

  Launch launch_;
  Receiver& receiver_;
  std::unique_ptr<Client> sender_;  // and the store itself, where this process has it
  std::unique_ptr<Client> inbox_;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<Letter> letters_;
  std::vector<std::int64_t> last_sent_;  // by process: the number of the last parcel, 0: none
  std::size_t unsent_ = 0;
  std::chrono::nanoseconds timeout_;
  bool is_broken_ = false;
  bool is_ending_ = false;

  struct Heart {
    std::int64_t beats = 0;
    Clock::time_point heard{};
    bool is_lost = false;
  };
  std::vector<Heart> hearts_;  // by process

  std::jthread send_thread_;
  std::jthread receive_thread_;
};

}  // namespace dualpipe
