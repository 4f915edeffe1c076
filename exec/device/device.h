// Where the tensors of a rank live and its ops run: the host's cores, or a GPU, which does later what it is given now.
//
//     thread of the rank    use(a)  F………  mark ─┐  use(b)  wait  B……  mark      returns at once on a GPU
//     lane a of the GPU             ▐██F██▌─────┤
//     lane b                                    └────▶▐██B██▌
//
// Lanes are streams: what is put on one runs in order, lanes run side by side. The host has no streams: a call returns
// when its work is done, and all lanes are the calling thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

// What goes from one stage to the next: none, one or several, of any shapes and types.
using Tensors = std::vector<at::Tensor>;

struct Lane {
  enum class Kind : std::uint8_t {
    compute,   // ops; one for each stage of the rank, by `index`, since the two of a pair are of different stages
    exchange,  // what a stage sends and gets within an op
    message,   // what goes between ranks: 0 and 1, of which NCCL has one for activations, and one for gradients
  };
  Kind kind = Kind::compute;
  std::uint16_t index = 0;  // as many as there may be stages

  friend bool operator==(const Lane&, const Lane&) = default;
};

// A point in the work of a lane: after all that had been put there.
struct Mark {
  Time time = 0;                // the host's: when that was
  const void* event = nullptr;  // a GPU's: knows the time when its device has finished; void from its next begin_step()
};

// Hears what an allocator does, on the thread that asks it for a block or gives one back, while the allocator is
// locked: it may call nothing of LibTorch. Used by any number of threads.
class MemoryListener {
 public:
  MemoryListener() = default;
  MemoryListener(const MemoryListener&) = delete;
  MemoryListener& operator=(const MemoryListener&) = delete;

  // `bytes`: those that the block takes.
  virtual void allocated(const void* data, Bytes bytes, at::DeviceType type) = 0;
  virtual void freed(const void* data) = 0;

 protected:
  ~MemoryListener() = default;
};

// What one rank has of a machine. Used by the thread of that rank; its marks may be waited for by any.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual at::Device where() const = 0;

  // All earlier marks are void, also those that other ranks got: nobody may wait for one any more.
  virtual void begin_step() = 0;

  // Where this thread puts its work from now on.
  virtual void use(Lane lane) = 0;
  [[nodiscard]] virtual Lane used() const = 0;
  [[nodiscard]] virtual Mark mark() = 0;
  // Whether all before the mark has run; always, where a call returns when its work is done. May be asked by any
  // thread.
  [[nodiscard]] virtual bool is_done(const Mark& /*mark*/) const { return true; }
  // What is put on the lane from now on starts after the mark.
  virtual void wait(const Mark& mark) = 0;
  // This thread goes on when all before the mark has run.
  virtual void await(const Mark& /*mark*/) {}

  // Makes usable in the lanes of this rank what another lane, also of another rank, has made and is done with at
  // `ready`. The tensor goes back to that lane's memory only when the work that was put on this rank's lanes while it
  // was in use has run.
  [[nodiscard]] virtual at::Tensor adopt(at::Tensor tensor, const Mark& ready) = 0;
  // The same for a message of another rank, which may also be copied, while the lane that is used does other things.
  // `ready` then becomes the mark of its arrival.
  [[nodiscard]] virtual at::Tensor take(at::Tensor tensor, Mark& ready) = 0;
  // When the copy of the last one that was taken began, if it was copied.
  [[nodiscard]] virtual std::optional<Mark> copy_begun() const { return std::nullopt; }

  // A copy that has gone the way that data between devices goes: what an all-to-all among the parts of a stage costs.
  // Put on the lane that is used.
  [[nodiscard]] virtual at::Tensor exchange(const at::Tensor& tensor) = 0;

  // Of what was adopted, and is used no more, how much the lanes are not done with: it is still allocated. May be asked
  // by any thread.
  [[nodiscard]] virtual Bytes pending_bytes() const { return 0; }

  // The allocator of the device's memory tells this listener of all blocks from now on, for as long as the process
  // lives; there is one listener, which may be named again. The host's never tells: it can be replaced. Throws
  // InputError where the allocator cannot.
  virtual void tell_of_memory(MemoryListener& /*listener*/) {}

  // Waits until all lanes have run. Throws std::runtime_error if the device failed.
  virtual void finish() = 0;
  // By the host's monotonic clock; only of marks from before finish(), also of another rank's that this one waited for.
  [[nodiscard]] virtual Time time_of(const Mark& mark) const = 0;
};

// Does all at once. One for all threads.
[[nodiscard]] Device& host_device();

// What it costs to know a time.
struct MarkCost {
  Time call = 0;     // of the thread, for one mark()
  Time between = 0;  // two marks one after the other lie at least so far apart: the resolution of what they measure
};

// What this process has, for the ranks that it holds.
class Hardware {
 public:
  Hardware() = default;
  Hardware(const Hardware&) = delete;
  Hardware& operator=(const Hardware&) = delete;
  virtual ~Hardware() = default;

  [[nodiscard]] virtual std::string description() const = 0;  // "NVIDIA H100 80GB HBM3 (132 multiprocessors)"
  // For the `index`-th of the `ranks` of this process, which holds so many stages, any number of them. Called by the
  // rank's thread; the hardware must outlive it. Throws InputError where there is not enough for so many ranks.
  [[nodiscard]] virtual std::unique_ptr<Device> device(int index, int ranks, int stages) = 0;
  // All of it, for a model without a pipeline. Used by one thread at a time, each of which begins with use().
  [[nodiscard]] virtual std::unique_ptr<Device> whole() { return device(0, 1, 1); }
  // Measured anew; to be called while nothing runs.
  [[nodiscard]] virtual MarkCost mark_cost() { return {}; }
};

// Which of the processes of its host this one is, from 0, and the variable of the environment that says so.
struct LocalProcess {
  std::string variable;
  int number = 0;

  friend bool operator==(const LocalProcess&, const LocalProcess&) = default;
};

struct CudaOptions {
  bool copy = false;          // messages between ranks are copied, as they would be between GPUs
  bool sm_partition = false;  // each rank has multiprocessors of its own (a green context)
  // Which of the GPUs that this process sees it has: the one with this number. A launcher may also show each process
  // one GPU of its own: where there is only one, it is that. Unset: what the launcher says (local_process() of
  // exec/transport/launch.h); without any, the first GPU.
  std::optional<LocalProcess> local{};
};
// Throws InputError saying what is missing: this was built without CUDA, its module or LibTorch's libraries for CUDA
// cannot be loaded, there is no GPU, or none for the process of this number.
[[nodiscard]] std::unique_ptr<Hardware> cuda_hardware(const CudaOptions& options);

}  // namespace dualpipe
