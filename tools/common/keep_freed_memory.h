// Memory that a process has freed stays its own: what it allocates next is there already. Else large blocks go back to
// the system as soon as they are free, and each time are given, page by page, anew: a part of the time of an op that
// depends on what ran before it.
#pragma once

#include <limits>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace dualpipe {

// For the whole process; at its start.
inline void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

}  // namespace dualpipe
