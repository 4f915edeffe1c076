// The calls of NCCL that a transport needs, on opaque handles. NCCL itself is behind it in exec/cuda, a module of its
// own, so that this library needs neither; tests have a double of it.
//
// Communicators are nonblocking (`blocking = 0`): a call may return before it is done, and the communicator may be used
// again only when state() says so. Each can be aborted by itself (`splitShare = 0`), by any thread while no other is in
// a call on it. Messages between two ranks of a communicator are matched by their order alone.
//
// All throw NcclError, which says what NCCL says.
#pragma once

#include <c10/core/DeviceType.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

namespace dualpipe {

class NcclError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Nccl {
 public:
  using Communicator = void*;
  enum class State { done, in_progress };

  Nccl() = default;
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;
  virtual ~Nccl() = default;

  // The kind of device whose tensors it moves.
  [[nodiscard]] virtual c10::DeviceType device_type() const = 0;

  // The identifier of a communicator that is to be made: bytes, which all its ranks are given.
  [[nodiscard]] virtual std::string unique_id() = 0;
  // Makes a communicator on the GPU that this thread uses. All its ranks call this. `ctas_max`: at most so many thread
  // blocks move its messages.
  [[nodiscard]] virtual Communicator init(const std::string& unique_id, int rank, int ranks, int ctas_max) = 0;
  [[nodiscard]] virtual State state(Communicator communicator) = 0;

  // Messages of a group move side by side, those of one peer in order; the group is done as a whole. It is put on the
  // stream that this thread uses. state() tells when it has been.
  virtual void group_start() = 0;
  virtual void send(Communicator communicator, const void* data, std::size_t bytes, int peer) = 0;
  virtual void receive(Communicator communicator, void* data, std::size_t bytes, int peer) = 0;
  virtual void group_end() = 0;

  // The orderly end: finalize(), which is done, as state() says, when all that was sent has been received; then
  // destroy().
  virtual void finalize(Communicator communicator) = 0;
  virtual void destroy(Communicator communicator) = 0;
  // The end at once, whatever is under way.
  virtual void abort(Communicator communicator) = 0;
};

// NCCL itself. Throws InputError saying what is missing, as cuda_hardware() does.
[[nodiscard]] std::shared_ptr<Nccl> cuda_nccl();

}  // namespace dualpipe
