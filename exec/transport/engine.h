// Moves parcels between the processes of a World. Private to exec/transport.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dualpipe/exec/transport/agreement.h"
#include "dualpipe/exec/transport/parcel.h"

namespace dualpipe::detail::transport {

class Engine {
 public:
  // Called by any thread, one at a time for forms_of().
  class Receiver {
   public:
    Receiver() = default;
    Receiver(const Receiver&) = delete;
    Receiver& operator=(const Receiver&) = delete;
    virtual ~Receiver() = default;
    // What the tensors of a parcel look like, of which only the rest is here. Throws std::runtime_error where the rest
    // is not what another process may send.
    [[nodiscard]] virtual Forms forms_of(const Parcel& parcel) = 0;
    virtual void deliver(int from, Parcel parcel) = 0;
    // What this process sent cannot be taken in: why. Nothing more is, from it.
    virtual void refused(int from, const std::string& reason) = 0;
    // Nothing comes or goes any more: why.
    virtual void broken(const std::string& reason) = 0;
    // Nothing was heard of a process for so long.
    virtual void lost(int process, std::chrono::nanoseconds silence) = 0;
    // Whether somebody waits for what comes.
    [[nodiscard]] virtual bool is_awaited() const = 0;
  };

  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;  // takes back what has not come

  // From now on the receiver is called.
  virtual void start() = 0;
  // When this returns, the receiver is not called any more. While it runs, it may be, and send().
  virtual void end() = 0;
  // Never waits. What one process sends to another comes in this order.
  virtual Departed send(int process, Parcel parcel) = 0;
  // To be called by who waits; it goes on without, only later.
  virtual void progress() = 0;
  // Whether all that was sent has gone.
  [[nodiscard]] virtual bool all_sent() = 0;
};

}  // namespace dualpipe::detail::transport
