// What a stage keeps of its micro-batches between their passes. Private to stages.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::stage {

// The pass that is to come: of a forward the backward, which is B or I; of an I the W.
enum class Awaited : std::uint8_t { backward, weight_gradient };

template <typename Value>
class Held {
 public:
  // What is left of a step that was broken off gives way.
  void put(std::uint32_t micro_batch, Awaited awaited, Value value) {
    values_.insert_or_assign(micro_batch, Entry{awaited, std::move(value)});
  }

  // Throws InputError where the pass before did not run, or this one did already.
  [[nodiscard]] Value take(std::uint32_t micro_batch, Awaited awaited) {
    const auto found = values_.find(micro_batch);
    if (found == values_.end() || found->second.awaited != awaited) {
      const bool is_weight = awaited == Awaited::weight_gradient;
      const std::string_view before = is_weight ? "its I" : "its forward";
      throw InputError(
          fmt::format("the stage holds nothing of micro-batch {} for this {}: {} did not run before it (with gradients "
                      "on), or it has run already; validate() says what is wrong with a schedule",
                      micro_batch, is_weight ? "W" : "backward", before));
    }
    Value value = std::move(found->second.value);
    values_.erase(found);
    return value;
  }

 private:
  struct Entry {
    Awaited awaited = Awaited::backward;
    Value value;
  };
  std::map<std::uint32_t, Entry> values_;  // by micro-batch
};

}  // namespace dualpipe::detail::stage
