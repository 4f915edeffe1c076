// Moves messages between the processes of a World, and knows nothing of what they mean. Private to exec/transport.
//
//     EngineWorld ──send──▶ Engine ═══════════ Engine ──deliver──▶ EngineWorld, of another process
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "dualpipe/exec/transport/wire_message.h"

namespace dualpipe::detail::transport {

class Engine {
 public:
  // Whom an engine tells what has come, or what is wrong. It may be called on any thread.
  class Receiver {
   public:
    Receiver() = default;
    Receiver(const Receiver&) = delete;
    Receiver& operator=(const Receiver&) = delete;
    virtual ~Receiver() = default;
    // A message has come, with its content.
    virtual void deliver(int from, WireMessage message) = 0;
    // What that process has sent is no message; says why. The engine takes in nothing more from it.
    virtual void refused(int from, const std::string& reason) = 0;
    // The engine has failed, and moves nothing any more; says why.
    virtual void broken(const std::string& reason) = 0;
    // The process has given no sign of life for so long.
    virtual void lost(int process, std::chrono::nanoseconds silence) = 0;
    // Whether somebody waits for a message right now, so that it is worth looking for one often.
    [[nodiscard]] virtual bool is_awaited() const = 0;
  };

  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  // From now on the receiver is called.
  virtual void start() = 0;
  // When this returns the receiver is called no more, and what has not come never comes. Until then it may be called,
  // and may call send().
  virtual void end() = 0;
  // Never waits. The messages of one process to another are delivered in the order of these calls.
  virtual void send(int process, const WireMessage& message) = 0;
  // Moves what is under way. Whoever waits for a message calls it again and again. Messages move without that, too, but
  // later.
  virtual void progress() = 0;
  // Whether all that was sent has left this process.
  [[nodiscard]] virtual bool all_sent() = 0;
};

}  // namespace dualpipe::detail::transport
