// Moves messages between processes through a store of LibTorch's (c10d::Store). Private to exec/transport.
//
// The store has an inbox for each process, of numbered messages; a sender draws the next number:
//
//     sender    n = add("inbox/2/count", 1)   set("inbox/2/<n>", message)
//     process 2                                                            wait("inbox/2/<n>") → get → delete
//
// It is meant for what is small: the beginning and the end of a run, sums between steps, shapes and types of messages.
//
// Each process also counts up a number of its own, its beat. A process whose beat stands still for the timeout is lost.
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
  // Joins `store`, or, where that is null, the TCP store that the launch names: process 0 makes it, unless the launcher
  // has. Throws InputError where it cannot be made, or not be reached within the timeout, or where another process says
  // that it has the number of this one.
  StoreEngine(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Receiver& receiver,
              std::chrono::nanoseconds timeout);
  // Where this process has the store, it waits a moment for the others to leave it. It takes at most about a second,
  // also where the store does not answer any more.
  ~StoreEngine() override;

  void start() override;
  void end() override;
  void send(int process, const WireMessage& message) override;
  void progress() override;
  // Whether all messages have been taken by those whom they were sent to, as far as the store has said by now.
  [[nodiscard]] bool all_sent() override;
  // From now on a process is lost whose beat stands still for so long. At first it is the constructor's timeout.
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
