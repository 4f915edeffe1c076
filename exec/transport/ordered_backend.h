// By what an OrderedTransport moves tensors: NCCL's communicators, or a process group. Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dualpipe::detail::transport {

// A transfer has failed; says which, and why. This rank is the first to know.
class TransferError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor that goes to a peer, or comes from it: contiguous, and not empty.
struct Transfer {
  at::Tensor tensor;
  int peer = 0;
  bool is_send = false;
  std::string what;  // for an error: "1SEND_F3"
};

// One rank's connection to the others of its pipeline. Messages between two ranks on one stream are matched by their
// order alone. All is called by the rank's thread, but for check() and cancel(), which any thread may call meanwhile.
class OrderedBackend {
 public:
  // Transfers under way that no stream of the device knows of. May be asked by any thread.
  class Work {
   public:
    Work() = default;
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
    virtual ~Work() = default;

    [[nodiscard]] virtual bool is_done(std::size_t transfer) = 0;
    // Returns when it is done. Throws TransferError where it failed, or cancel() has ended the wait.
    virtual void wait(std::size_t transfer) = 0;
  };

  OrderedBackend() = default;
  OrderedBackend(const OrderedBackend&) = delete;
  OrderedBackend& operator=(const OrderedBackend&) = delete;
  virtual ~OrderedBackend() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;  // "NCCL"
  // At each step's beginning. Throws InputError where it moves no tensors that are there.
  virtual void begin(at::Device where) = 0;
  // How many streams it has: 2, so that activations and gradients do not wait for each other, or 1.
  [[nodiscard]] virtual std::size_t streams() const = 0;
  // Collective, before the first group of a stream.
  virtual void connect(std::size_t stream) = 0;
  // Whether what the last call for this stream asked for has been put on it. After cancel() it never is.
  [[nodiscard]] virtual bool is_ready(std::size_t stream) = 0;
  // The transfers move side by side, those of one peer in order. On a GPU they are put on the device's stream that this
  // thread uses, which then knows when they are done: null is returned. After cancel() nothing is done. Throws what is
  // wrong.
  [[nodiscard]] virtual std::shared_ptr<Work> put(std::size_t stream, std::span<const Transfer> transfers) = 0;

  // Throws what is wrong with what is under way.
  virtual void check() = 0;
  // Ends what is under way, and whoever waits for it.
  virtual void cancel() = 0;
  // The orderly end: waits, at most so long, until what was sent has been received.
  virtual void close(std::chrono::nanoseconds timeout) = 0;
};

}  // namespace dualpipe::detail::transport
