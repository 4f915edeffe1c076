// Which thread holds how much of the memory of tensors.
//
// While a thread has a MemoryMeter, what it allocates of its device's memory through LibTorch is charged to it, until
// it is freed, by whichever thread. A tensor that goes to another rank is charged to the receiver from when that takes
// it. Bytes of the host are those that were asked for; of a GPU these in whole units of its allocator, of 512.
//
// The process may be somebody else's. Nothing in it changes until the first WatchMemory:
//
//     host   while one lives, an allocator stands before LibTorch's, whichever that is. It hands out the same blocks,
//            and of those that are counted it keeps a table, out of which their deleter takes them. With the last
//            WatchMemory it goes. Only its object stays, as storages may know it
//     GPU    LibTorch's caching allocator tells a callback of each block. LibTorch has no way to take a callback back:
//            it stays from the first WatchMemory for a GPU, and does next to nothing while nobody measures
//
// Neither touches what torch.profiler uses: both may measure at the same time.
//
// On a GPU, too, memory is counted when the thread asks for it, ahead of the device: as the allocator does, which uses
// a block again at once, in the order of its stream. Not seen: what LibTorch allocates on threads of its own
// (at::set_num_threads above 1), and buffers inside of its matrix libraries.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::replay {

class MemoryAccount;

// While one lives, anywhere in the process, blocks of the device's memory may be counted. With the last one all that
// was charged is forgotten. A MemoryMeter has one; whoever measures again and again keeps one, so that what comes in
// between is known.
class WatchMemory {
 public:
  // Throws InputError where the allocator does not tell what it does.
  explicit WatchMemory(Device& device = host_device());
  ~WatchMemory();
  WatchMemory(const WatchMemory&) = delete;
  WatchMemory& operator=(const WatchMemory&) = delete;

 private:
  bool of_host_;
};

// Measures the calling thread's use of a device's memory while it lives; one at a time.
class MemoryMeter {
 public:
  // Throws InputError where the thread has one, and like WatchMemory.
  explicit MemoryMeter(Device& device = host_device());
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  // What is held now, and the most that was, above what was held at first.
  [[nodiscard]] Bytes held() const;
  [[nodiscard]] Bytes peak() const;
  // The most since this was last called; the first time, since the beginning.
  Bytes take_peak();

 private:
  WatchMemory watch_;
  std::shared_ptr<MemoryAccount> account_;
  Bytes first_;
  Bytes taken_ = 0;  // the largest of the peaks that were taken
};

// What the calling thread is charged with in all: also from before the meter that it has, by those it had while a
// WatchMemory lived. Throws InputError where it has none.
[[nodiscard]] Bytes held_by_this_thread();

// While it lives, what the calling thread allocates is charged to nobody at first: memory that another thread will
// take.
class ChargeToNobody {
 public:
  ChargeToNobody();
  ~ChargeToNobody();
  ChargeToNobody(const ChargeToNobody&) = delete;
  ChargeToNobody& operator=(const ChargeToNobody&) = delete;

 private:
  bool before_;
};

// The storage of a tensor leaves the thread that it is charged to, and is charged to the calling thread. Both leave a
// tensor alone that was allocated while nobody measured.
void charge_to_nobody(const at::Tensor& tensor);
void charge_to_this_thread(const at::Tensor& tensor);

}  // namespace dualpipe::detail::replay
