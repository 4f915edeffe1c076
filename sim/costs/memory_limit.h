// How much a rank may hold: in bytes, or in activations of whole micro-batches, as papers count it.
#pragma once

#include <cstdint>
#include <string>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

struct MemoryLimit {
  enum class Unit : std::uint8_t {
    bytes,  // of all that a rank holds, as rank_memory() counts it
    // Of activations alone. A micro-batch counts as 1 on a rank while all stages of the rank hold its activation; each
    // of n stages is an n-th of that, whatever its bytes. After an I there counts what it leaves for W: M_W / M_B of
    // the stage's share, all of it where costs have no bytes.
    micro_batches
  };
  static constexpr std::int64_t per_micro_batch = 1'000'000;

  std::int64_t amount;  // bytes, or millionths of a micro-batch
  Unit unit = Unit::bytes;

  constexpr MemoryLimit(Bytes bytes) : amount(bytes) {}  // implicit: bytes are what memory is counted in
  constexpr MemoryLimit(std::int64_t amount_in_unit, Unit of) : amount(amount_in_unit), unit(of) {}
  [[nodiscard]] static constexpr MemoryLimit micro_batches(std::int64_t count) {
    return {count * per_micro_batch, Unit::micro_batches};
  }

  friend bool operator==(const MemoryLimit&, const MemoryLimit&) = default;
};

// "8000 bytes", "7.5 micro-batches".
[[nodiscard]] std::string to_text(const MemoryLimit& limit);

}  // namespace dualpipe
