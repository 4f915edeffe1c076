#include "dualpipe/exec/model/crc32.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>

namespace dualpipe::detail::model {
namespace {

// Slicing-by-16 (Kounavis and Berry, "Novel Table Lookup-Based Algorithms for High-Performance CRC Generation", 2008):
// 16 bytes at a time, each looked up in the table of how many bytes come after it.
constexpr std::size_t slices = 16;
using CrcTable = std::array<std::uint32_t, 256>;

constexpr std::array<CrcTable, slices> make_tables() {
  constexpr std::uint32_t polynomial = 0xedb88320U;  // x^32 is its highest power, which has no bit; lowest bit first
  std::array<CrcTable, slices> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1U) ^ ((remainder & 1U) != 0 ? polynomial : 0);
    tables[0][byte] = remainder;
  }
  for (std::size_t after = 1; after < slices; ++after) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[after - 1][byte];
      tables[after][byte] = (before >> 8U) ^ tables[0][before & 0xffU];
    }
  }
  return tables;
}

constexpr std::array<CrcTable, slices> tables = make_tables();

static_assert(std::endian::native == std::endian::little, "words are read as they stand in memory");

// Of four bytes, the last of which has `after` others behind it.
std::uint32_t look_up(std::uint32_t word, std::size_t after) {
  return tables[after + 3][word & 0xffU] ^ tables[after + 2][(word >> 8U) & 0xffU] ^
         tables[after + 1][(word >> 16U) & 0xffU] ^ tables[after][word >> 24U];
}

}  // namespace

void Crc32::add(std::span<const std::byte> bytes) {
  std::uint32_t state = state_;
  for (; bytes.size() >= slices; bytes = bytes.subspan(slices)) {
    std::array<std::uint32_t, slices / sizeof(std::uint32_t)> words{};
    std::memcpy(words.data(), bytes.data(), slices);
    state = look_up(words[0] ^ state, 12) ^ look_up(words[1], 8) ^ look_up(words[2], 4) ^ look_up(words[3], 0);
  }
  for (const std::byte byte : bytes) {
    state = (state >> 8U) ^ tables[0][(state ^ std::to_integer<std::uint32_t>(byte)) & 0xffU];
  }
  state_ = state;
}

std::uint32_t crc32(std::span<const std::byte> bytes) {
  Crc32 sum;
  sum.add(bytes);
  return sum.value();
}

std::string crc32_text(std::uint32_t value) { return fmt::format("{:08x}", value); }

}  // namespace dualpipe::detail::model
