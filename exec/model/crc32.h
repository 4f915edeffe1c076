// CRC-32, the checksum of zlib, gzip and PNG (ISO 3309; Python has it as zlib.crc32). It changes with every flip of a
// bit, and with everything that goes wrong within 32 bits in a row; of other damage one in 2^32 escapes it. Private to
// exec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace dualpipe::detail::model {

// Of bytes that come piece by piece.
class Crc32 {
 public:
  void add(std::span<const std::byte> bytes);
  [[nodiscard]] std::uint32_t value() const { return ~state_; }

 private:
  std::uint32_t state_ = ~std::uint32_t{0};
};

[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> bytes);

// As it is written everywhere: 8 hexadecimal digits.
[[nodiscard]] std::string crc32_text(std::uint32_t value);

}  // namespace dualpipe::detail::model
