#include "dualpipe/sim/costs/memory_limit.h"

#include <fmt/core.h>

namespace dualpipe {

std::string to_text(const MemoryLimit& limit) {
  if (limit.unit == MemoryLimit::Unit::bytes) return fmt::format("{} bytes", limit.amount);
  std::string number =
      fmt::format("{}.{:06}", limit.amount / MemoryLimit::per_micro_batch, limit.amount % MemoryLimit::per_micro_batch);
  number.erase(number.find_last_not_of('0') + 1);
  if (number.back() == '.') number.pop_back();
  return fmt::format("{} micro-batch{}", number, number == "1" ? "" : "es");
}

}  // namespace dualpipe
