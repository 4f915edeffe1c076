// A number that differs where what was added differs, but for a chance of about 1 in 2^64: by it, processes find out
// that they were given different schedules. FNV-1a over the bytes as they lie in memory, so that it has a meaning only
// between processes of one build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

class Fingerprint {
 public:
  // Values without padding between their members, or with it always the same.
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void add(const T& value) {
    for (const std::byte each : std::as_bytes(std::span(&value, 1))) {
      value_ = (value_ ^ static_cast<std::uint64_t>(each)) * 1099511628211U;
    }
  }
  template <typename T>
  void add(const std::vector<T>& values) {
    add(values.size());
    for (const T& each : values) add(each);
  }
  [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037U;
};

// Of the placement, every op and every message, in their order; not of the name.
[[nodiscard]] std::uint64_t fingerprint(const Program& program);

}  // namespace dualpipe
