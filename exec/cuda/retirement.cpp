#include "dualpipe/exec/cuda/retirement.h"

#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <limits>
#include <utility>

namespace dualpipe::detail::cuda {

Retirement::Retirement(std::vector<c10::cuda::CUDAStream> streams) : streams_(std::move(streams)) {
  assert(!streams_.empty() && streams_.size() <= std::numeric_limits<StreamSet>::digits);
}

void Retirement::park(at::Tensor tensor, StreamSet streams, Bytes counted) {
  const c10::cuda::CUDAGuard guard(streams_.front().device_index());
  const std::lock_guard lock(mutex_);
  if (closed_) return;  // frees it
  Parked parked;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    if ((streams >> i & 1U) == 0) continue;
    if (spare_.empty()) spare_.emplace_back(Event::Knows::order);
    parked.fences.push_back(std::move(spare_.back()));
    spare_.pop_back();
    parked.fences.back().record(streams_[i].stream());
  }
  parked.tensor = std::move(tensor);
  parked.counted = counted;
  kept_ += counted;
  parked_.push_back(std::move(parked));
}

// What they return is freed without the lock: that may be the end of another lease, which is parked here.
std::deque<Retirement::Parked> Retirement::take(bool reached_only) {
  std::deque<Parked> taken;
  const std::lock_guard lock(mutex_);
  while (!parked_.empty()) {
    Parked& oldest = parked_.front();
    if (reached_only && !std::ranges::all_of(oldest.fences, &Event::is_done)) break;
    std::ranges::move(oldest.fences, std::back_inserter(spare_));
    oldest.fences.clear();
    kept_ -= oldest.counted;
    taken.push_back(std::move(oldest));
    parked_.pop_front();
  }
  return taken;
}

void Retirement::release() { static_cast<void>(take(true)); }

void Retirement::release_all(StreamSet used) {
  busy_.store(used, std::memory_order_relaxed);
  static_cast<void>(take(false));
}

void Retirement::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  static_cast<void>(take(false));
}

}  // namespace dualpipe::detail::cuda
