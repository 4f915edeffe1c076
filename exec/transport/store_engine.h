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
#include <vector>

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
  void send(int process, const WireMessage& message) override;
  void progress() override;
  // Whether all was taken by those whom it was sent to, as far as the store has said.
  [[nodiscard]] bool all_sent() override;
  // Whose beat stands still for so long is lost. At first: the constructor's.
  void set_timeout(std::chrono::nanoseconds timeout);

 private:
  class Work;
  // All that may wait for the store runs on threads of its own, with the work that they share. Nothing ends a call that
  // the store does not answer: then such a thread is left behind.
  [[nodiscard]] std::future<void> run(void (Work::*part)(), const char* name) const;

  std::shared_ptr<Work> work_;
  std::vector<std::future<void>> ends_;  // of its threads
};

}  // namespace dualpipe::detail::transport
