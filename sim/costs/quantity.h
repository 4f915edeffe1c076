// Numbers with units, as people type them. All throw InputError that quotes the text and says what is allowed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

// "850us", "1.25ms", "3 s", "12ns"; a bare number is milliseconds. Exact: up to 24 digits, rounded half up to a
// nanosecond. At most a day.
[[nodiscard]] Time parse_duration(std::string_view text);

// The same where nobody could tell what a bare number is, which is refused: a timeout. "5s", "500ms", "0".
[[nodiscard]] Time parse_time_with_unit(std::string_view text);

// "4096", "64KiB", "1.5GiB", "2MB": powers of 1024 with an i, of 1000 without; a bare number is bytes, of which there
// are no parts. Rounded half up to a byte.
[[nodiscard]] Bytes parse_bytes(std::string_view text);

// An amount of bytes, or of micro-batches: "12 microbatches", "7.5microbatches", to a millionth.
[[nodiscard]] MemoryLimit parse_memory_limit(std::string_view text);

// Bytes per second: "50GB/s", "50GB", "46GiB/s", and in bits "400Gbps", "400Gb/s", "400Gbit/s". "0" is infinite; a bare
// number of anything else is refused.
[[nodiscard]] double parse_bandwidth(std::string_view text);

// A whole number from `least` to `most`.
[[nodiscard]] std::int64_t parse_integer(std::string_view text, std::int64_t least, std::int64_t most);

// A finite decimal number: "0.05", "1e-3".
[[nodiscard]] double parse_real(std::string_view text);

// Of a list the parts between separators, which may be empty. It throws nothing.
[[nodiscard]] std::vector<std::string_view> split_at(char separator, std::string_view text);

}  // namespace dualpipe
