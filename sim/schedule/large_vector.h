// Memory for the arrays of ops that make up most of a large schedule. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dualpipe::detail::schedule {

// Reserves room, on huge pages where the system has them. The ops of a thousand ranks lie on more small pages than the
// processor has translations for, and to fill half a gigabyte costs 130,000 page faults. (Measured at 1024 ranks and
// 8192 micro-batches: with huge pages generate() takes a third of the time, lower() two thirds.)
template <typename T>
void reserve_large(std::vector<T>& vector, std::size_t count) {
  vector.reserve(count);
#if defined(__linux__)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21U;
  const auto begin = reinterpret_cast<std::uintptr_t>(vector.data());
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t last = (begin + vector.capacity() * sizeof(T)) / page * page;
  // This is a hint: where the system refuses it, small pages are used.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace dualpipe::detail::schedule
