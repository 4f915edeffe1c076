#include "dualpipe/exec/cuda/deferred_free.h"

#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <limits>
#include <utility>

namespace dualpipe::detail::cuda {

DeferredFree::DeferredFree(std::vector<c10::cuda::CUDAStream> streams) : streams_(std::move(streams)) {
  assert(!streams_.empty() && streams_.size() <= std::numeric_limits<StreamSet>::digits);
}

void DeferredFree::defer(at::Tensor tensor, StreamSet streams, Bytes counted) {
  const c10::cuda::CUDAGuard guard(streams_.front().device_index());
  const std::lock_guard lock(mutex_);
  if (closed_) return;  // frees it
  Deferred deferred;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    if ((streams >> i & 1U) == 0) continue;
    if (spare_.empty()) spare_.emplace_back(CudaEvent::Knows::order);
    deferred.fences.push_back(std::move(spare_.back()));
    spare_.pop_back();
    deferred.fences.back().record(streams_[i].stream());
  }
  deferred.tensor = std::move(tensor);
  deferred.counted = counted;
  pending_bytes_ += counted;
  deferred_.push_back(std::move(deferred));
}

// What they return is freed without the lock: that may be the end of another alias, which is deferred here.
std::deque<DeferredFree::Deferred> DeferredFree::take(bool reached_only) {
  std::deque<Deferred> taken;
  const std::lock_guard lock(mutex_);
  while (!deferred_.empty()) {
    Deferred& oldest = deferred_.front();
    if (reached_only && !std::ranges::all_of(oldest.fences, &CudaEvent::is_done)) break;
    std::ranges::move(oldest.fences, std::back_inserter(spare_));
    oldest.fences.clear();
    pending_bytes_ -= oldest.counted;
    taken.push_back(std::move(oldest));
    deferred_.pop_front();
  }
  return taken;
}

void DeferredFree::release() { static_cast<void>(take(true)); }

void DeferredFree::release_all(StreamSet used) {
  busy_.store(used, std::memory_order_relaxed);
  static_cast<void>(take(false));
}

void DeferredFree::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  static_cast<void>(take(false));
}

}  // namespace dualpipe::detail::cuda
