// Which thread holds how much of the memory of tensors.
//
// While a thread has a MemoryMeter, what it allocates of its device's memory through LibTorch is charged to it, until
// it is freed, by whichever thread. A tensor that goes to another rank is charged to the receiver from when that takes
// it.
//
//     host   a header before each block of LibTorch's CPU allocator says to whom it is charged
//     GPU    LibTorch reports each block that the allocator hands out, or takes back, on the thread that asks for it; a
//            table knows to whom it is charged. Bytes are those of the block, a little more than was asked for
//
// On a GPU, too, memory is counted when the thread asks for it, ahead of the device: as the allocator does, which uses
// a block again at once, in the order of its lane. Not seen: what LibTorch allocates on threads of its own
// (at::set_num_threads above 1), and buffers inside of its matrix libraries; on a GPU what a thread frees that never
// had a meter, until that block is handed out again.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>

#include "dualpipe/sim/simulate/costs.h"

namespace dualpipe {

class MemoryAccount;

// Measures the calling thread's use of a device's memory while it lives; one at a time.
class MemoryMeter {
 public:
  explicit MemoryMeter(at::Device device = at::kCPU);
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  // What is held now, and the most that was, above what was held at first.
  [[nodiscard]] Bytes held() const;
  [[nodiscard]] Bytes peak() const;
  // The most since this was last called; the first time, since the beginning.
  Bytes take_peak();

 private:
  std::shared_ptr<MemoryAccount> account_;
  Bytes first_;
  Bytes taken_ = 0;  // the largest of the peaks that were taken
};

// What the calling thread, which has a meter, is charged with in all: also from before that meter, by those it had.
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

}  // namespace dualpipe
