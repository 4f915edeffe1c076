// Where the tensors of a rank are, and its ops run: the cores of the host; or a GPU, which takes work now and does it
// later.
//
//     thread of the rank     use(a)  F………  event ─┐  use(b)  wait  B……  event      returns at once on a GPU
//     stream a of the GPU              ▐██F██▌─────┤
//     stream b                                     └────▶▐██B██▌
//
// The work of one stream runs in order, and streams run side by side, as those of CUDA. The host has none: a call
// returns when its work is done, and all streams are the calling thread.
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

struct Stream {
  enum class Kind : std::uint8_t {
    compute,   // ops; one for each stage of the rank, by `index`, since the two of a pair are of different stages
    exchange,  // what a stage sends and gets within an op
    message,   // what goes between ranks: 0 and 1, of which NCCL has one for activations, and one for gradients
  };
  Kind kind = Kind::compute;
  std::uint16_t index = 0;  // as many as there may be stages

  friend bool operator==(const Stream&, const Stream&) = default;
};

// A point in the work of a stream: it is reached when all the work that was on the stream by then has run.
struct Event {
  Time time = 0;                 // on the host: when it was made
  const void* handle = nullptr;  // on a GPU: has the time once the device has finished; void from its next begin_step()
};

// Is told of each block that an allocator hands out or takes back. It is called on the thread that asks the allocator,
// by any number of threads, while the allocator is locked: so it must call nothing of LibTorch.
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

// The part of a machine that one rank has. It is used by the thread of that rank; others may wait for its events.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual at::Device where() const = 0;

  // Makes all earlier events void, also those that other ranks have got: nobody may wait for one any more.
  virtual void begin_step() = 0;

  // The stream on which this thread puts its work from now on.
  virtual void use(Stream stream) = 0;
  [[nodiscard]] virtual Stream used() const = 0;
  [[nodiscard]] virtual Event record_event() = 0;
  // Whether the event is reached. On the host it always is. May be called by any thread.
  [[nodiscard]] virtual bool is_done(const Event& /*event*/) const { return true; }
  // The work that is put on the stream from now on starts after the event.
  virtual void wait(const Event& event) = 0;
  // Blocks this thread until the event is reached.
  virtual void await(const Event& /*event*/) {}

  // Makes a tensor usable in the streams of this rank that another stream, perhaps of another rank, has made and is
  // done with at `ready`. When the result is dropped, the memory goes back to that stream only after the work that this
  // rank's streams have been given by then has run.
  [[nodiscard]] virtual at::Tensor adopt(at::Tensor tensor, const Event& ready) = 0;
  // The same for a message of another rank. The device may copy it, while the stream that is used does other things;
  // then `ready` becomes the event at which the copy is there.
  [[nodiscard]] virtual at::Tensor take(at::Tensor tensor, Event& ready) = 0;
  // When the copy of the tensor that was taken last began, if it was copied.
  [[nodiscard]] virtual std::optional<Event> copy_begun() const { return std::nullopt; }

  // A copy of the tensor that took the way of data between devices, and so costs what an all-to-all among the shards of
  // a stage costs. It is made on the stream that is used.
  [[nodiscard]] virtual at::Tensor exchange(const at::Tensor& tensor) = 0;

  // How much memory is still allocated only because streams are not done with tensors that were adopted and have been
  // dropped since. May be called by any thread.
  [[nodiscard]] virtual Bytes pending_bytes() const { return 0; }

  // From now on, and as long as the process lives, the allocator of the device's memory tells this listener of all
  // blocks. There can be only one listener; it may be given again. On the host this does nothing, since there the
  // allocator itself can be replaced (exec/replay/memory.h). Throws InputError where the allocator tells nobody.
  virtual void tell_of_memory(MemoryListener& /*listener*/) {}

  // Waits until all streams have run. Throws std::runtime_error if the device failed.
  virtual void finish() = 0;
  // When an event was reached, by the host's monotonic clock. Only for events that were made before finish(), of this
  // rank or of another one whose event it waited for.
  [[nodiscard]] virtual Time time_of(const Event& event) const = 0;
};

// Runs all work at once, on the calling thread. All threads share this device.
[[nodiscard]] Device& host_device();

// What an event costs.
struct EventCost {
  Time call = 0;     // time of the calling thread for one record_event()
  Time between = 0;  // the least time between two events, and so the resolution of what they measure
};

// The devices that this process has for its ranks.
class Hardware {
 public:
  Hardware() = default;
  Hardware(const Hardware&) = delete;
  Hardware& operator=(const Hardware&) = delete;
  virtual ~Hardware() = default;

  [[nodiscard]] virtual std::string description() const = 0;  // "NVIDIA H100 80GB HBM3 (132 multiprocessors)"
  // The device of the `index`-th of the `ranks` of this process. `stages`: how many that rank holds, any number. Called
  // by the rank's thread; the hardware must outlive the device. Throws InputError where it cannot serve so many ranks.
  [[nodiscard]] virtual std::unique_ptr<Device> device(int index, int ranks, int stages) = 0;
  // All of it, for a model without a pipeline. Used by one thread at a time, each of which begins with use().
  [[nodiscard]] virtual std::unique_ptr<Device> whole() { return device(0, 1, 1); }
  // Measured anew; to be called while nothing runs.
  [[nodiscard]] virtual EventCost event_cost() { return {}; }
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
