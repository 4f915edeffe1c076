// How tensors move between ranks. One Transport per rank, used by that rank's thread alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// The run ends because another rank has failed, or did not answer in time. Says which rank, and in which op it was.
class TransportError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What this rank waited for did not come in time. This rank is the first to know, and has to abort the run.
class TimeoutError : public TransportError {
 public:
  using TransportError::TransportError;
};

struct Received {
  Tensors tensors;
  std::chrono::steady_clock::time_point arrived;
  Event ready{};  // on a GPU: the event at which the content is there
};

// Which micro-batches have messages of the same shapes and types, at each boundary of a chain.
struct MessageForms {
  std::uint64_t id = 0;  // the same for the same `of_place`: what was learnt of them stays known
  std::vector<std::uint32_t>
      of_place{};  // by place (exec/pipeline/pipeline.h), equal where they look alike. Empty: all

  friend bool operator==(const MessageForms&, const MessageForms&) = default;
};

class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;

  // From the next step on. Where nobody has said it, all micro-batches of all steps look alike. All ranks say the same,
  // before the same step. Only a transport that must know a message before it comes makes use of it.
  virtual void expect(const MessageForms& /*forms*/) {}
  // A step begins, and runs this rank's part of the program on the device; its events are void, as is what was received
  // before. Called by the rank's thread, with a stream of the device in use that the slots' ops run on. Throws
  // InputError or DeadlockError where the program's messages cannot move in its order.
  virtual void begin(const Program& program, Device& device) = 0;
  // What was sent and posted since the last call are the messages of one batch of the Program (an NCCL group).
  virtual void end_batch() = 0;
  // The device has run all that it was given: throws TransportError if what it received is void, as the run was aborted
  // meanwhile.
  virtual void confirm() = 0;

  // Hands over what a SEND op of this rank sends, and what is done at `ready`; never waits for the receiver. Any
  // number of tensors, also none; one that is undefined (the gradient of what needs none) arrives undefined. They must
  // not be changed afterwards.
  virtual void send(Op message, Tensors tensors, const Event& ready) = 0;
  // Announces that a RECV op is reached, so that the message can be taken in while the rank computes.
  virtual void post_receive(Op message) = 0;
  // Waits for a message that was posted. Number, order, shapes and types of its tensors are what the sender sent.
  // Throws TransportError when the run was aborted, TimeoutError when nothing came within the timeout.
  [[nodiscard]] virtual Received wait(Op message) = 0;

  // Each tensor becomes its sum over `stages`, added in their order, so that all get the same bits. `stages`: all that
  // take part, in ascending order, the same on all ranks; `stage`: which of them brings these tensors. Waits for the
  // other ranks. A rank that holds several of the stages meets the others at the last of them that it brings; only then
  // have all of its tensors been summed. Until then neither the tensors nor their storage may be touched.
  virtual void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) = 0;

  // Between steps: waits for all ranks; every rank gets the sum of the values, added in the order of ranks.
  [[nodiscard]] virtual double sum(double value) = 0;

  // Ends the run on all ranks: whoever waits, or will wait, throws TransportError with this reason. The first one
  // counts.
  virtual void abort(const std::string& reason) = 0;
};

// What messages of one link take besides.
struct LinkDelay {
  int from = 0;  // ranks
  int to = 0;
  std::chrono::nanoseconds delay{0};

  friend bool operator==(const LinkDelay&, const LinkDelay&) = default;
};

struct TransportOptions {
  std::chrono::nanoseconds timeout = std::chrono::seconds(60);  // of one wait
  std::chrono::nanoseconds link_delay{0};                       // a message arrives no earlier than this after its send
  std::vector<LinkDelay> slow_links = {};                       // those whose messages take longer

  [[nodiscard]] std::chrono::nanoseconds delay(int from, int to) const {
    std::chrono::nanoseconds sum = link_delay;
    for (const LinkDelay& each : slow_links) {
      if (each.from == from && each.to == to) sum += each.delay;
    }
    return sum;
  }
};

// Ranks that are threads of this process: one Transport each, by rank.
[[nodiscard]] std::vector<std::unique_ptr<Transport>> thread_transports(const Placement& placement,
                                                                        const TransportOptions& options);

}  // namespace dualpipe
