// Memory for the arrays of ops that make up most of a large schedule. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dualpipe::detail::schedule {

// Reserves room, on huge pages where the system has them: a thousand ranks' streams need more small pages than the
// processor can keep translated, and filling half a gigabyte faults in 130,000 of them. (Measured at 1024 ranks, 8192
// micro-batches: generate() takes a third of the time, lower() two thirds.)
template <typename T>
void reserve_large(std::vector<T>& vector, std::size_t count) {
  vector.reserve(count);
#if defined(__linux__)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21U;
  const auto begin = reinterpret_cast<std::uintptr_t>(vector.data());
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t last = (begin + vector.capacity() * sizeof(T)) / page * page;
  // A hint: where it is refused all works as before.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace dualpipe::detail::schedule
