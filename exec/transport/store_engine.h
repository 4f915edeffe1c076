// Moves messages between processes through a store of LibTorch's (c10d::Store). Private to exec/transport.
//
// The store has an inbox for each process, of numbered messages; a sender draws the next number:
//
//     sender    n = add("inbox/2/count", 1)   set("inbox/2/<n>", message)
//     process 2                                                            wait("inbox/2/<n>") → get → delete
//
// It is for what is small: the beginning and the end of a run, sums between steps, what messages look like.
//
// Each process also counts a beat up; whose beat stands still for long is lost.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/launch.h"

namespace c10d {
class Store;
}  // namespace c10d

namespace dualpipe::detail::transport {

class StoreEngine final : public Engine {
 public:
  // Joins `store`; null: the launch's TCP store, which process 0 makes, if nobody else has. Throws InputError saying
  // what to do where it cannot be made, or reached within the timeout, or another process says that it is this one.
  StoreEngine(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Receiver& receiver,
              std::chrono::nanoseconds timeout);
  // Where this process has the store, it waits a moment for the others to leave it. Ends within about a second, also
  // where the store does not answer any more; the receiver is not called again.
  ~StoreEngine() override;

  void start() override;
  void end() override;
  SendCompletion send(int process, WireMessage message) override;
  void progress() override;
  // Whether all was taken by those whom it was sent to, as far as the store has said.
  [[nodiscard]] bool all_sent() override;
  // Whose beat stands still for so long is lost. At first: the constructor's.
  void set_timeout(std::chrono::nanoseconds timeout);

 private:
  class Work;
  // All that may wait for the store is done by these. Nothing ends a call that the store does not answer: then the
  // thread is left behind, with the work that it shares.
  class Worker {
   public:
    Worker() = default;
    ~Worker();  // leaves it behind
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    void start(const std::shared_ptr<Work>& work, void (Work::*run)(), const char* name);
    // Waits so long for its end, and throws what it ended with. Returns false if that is still to come.
    [[nodiscard]] bool await_end(Clock::time_point deadline);
    // Waits so long for its end, then leaves it behind.
    void end_by(Clock::time_point deadline);

   private:
    std::thread thread_;
    std::future<void> end_;
  };

  std::shared_ptr<Work> work_;
  Worker sender_;
  Worker inbox_;
};

}  // namespace dualpipe::detail::transport
