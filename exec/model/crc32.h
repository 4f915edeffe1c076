// CRC-32, the checksum of zlib, gzip and PNG (ISO 3309; Python has it as zlib.crc32). It changes with every flip of a
// bit, and with everything that goes wrong within 32 bits in a row; of other damage one in 2^32 escapes it. Private to
// exec.
#pragma once

#include <fmt/format.h>
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace dualpipe::detail::model {

// Of bytes that follow others, whose checksum is `before`.
[[nodiscard]] inline std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0) {
  if (bytes.empty()) return before;  // zlib begins anew where there is no address
  return static_cast<std::uint32_t>(::crc32_z(before, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// As it is written everywhere: 8 hexadecimal digits.
[[nodiscard]] inline std::string crc32_text(std::uint32_t value) { return fmt::format("{:08x}", value); }

}  // namespace dualpipe::detail::model
