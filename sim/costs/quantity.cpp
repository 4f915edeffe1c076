#include "dualpipe/sim/costs/quantity.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

__extension__ using Int128 = __int128;

struct Unit {
  std::string_view name;
  std::int64_t size;
};

constexpr std::array duration_units{Unit{"", 1'000'000},     Unit{"ns", 1},          Unit{"us", 1'000},
                                    Unit{"\u00b5s", 1'000},  Unit{"\u03bcs", 1'000}, Unit{"ms", 1'000'000},
                                    Unit{"s", 1'000'000'000}};
constexpr std::string_view duration_help =
    "a duration is a number and ns, us, ms or s, or a bare number of milliseconds";

constexpr std::int64_t kibi = 1024;
constexpr std::array byte_units{Unit{"", 1},
                                Unit{"B", 1},
                                Unit{"KB", 1'000},
                                Unit{"MB", 1'000'000},
                                Unit{"GB", 1'000'000'000},
                                Unit{"TB", 1'000'000'000'000},
                                Unit{"KiB", kibi},
                                Unit{"MiB", kibi* kibi},
                                Unit{"GiB", kibi* kibi* kibi},
                                Unit{"TiB", kibi* kibi* kibi* kibi}};
constexpr std::string_view byte_help =
    "an amount is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, or a bare "
    "number of bytes";

[[noreturn]] void refuse(std::string_view text, std::string_view why, std::string_view help) {
  throw InputError(fmt::format("{} {}; {}", detail::schedule::quote(text), why, help));
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

constexpr std::ptrdiff_t digits_max = 24;  // times the largest unit they fit into 128 bits

// A decimal number without sign or exponent, of at most digits_max digits, times `size`, rounded half up. Nothing if it
// is not one.
std::optional<Int128> scaled(std::string_view number, std::int64_t size) {
  Int128 numerator = 0;
  Int128 denominator = 1;
  bool digits = false;
  bool fraction = false;
  for (const char c : number) {
    if (c == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (!is_digit(c)) return std::nullopt;
    digits = true;
    numerator = numerator * 10 + (c - '0');
    if (fraction) denominator *= 10;
  }
  if (!digits) return std::nullopt;
  return (numerator * size + denominator / 2) / denominator;
}

// `amount` is what counts of `text`, which is quoted where it cannot be read.
std::int64_t parse_quantity(std::string_view amount, std::span<const Unit> units, std::int64_t most,
                            std::string_view text, std::string_view help) {
  const std::string_view all = trimmed(amount);
  if (!all.empty() && all.front() == '-') refuse(text, "is negative", help);
  const auto end = std::ranges::find_if(all, [](char c) { return !is_digit(c) && c != '.'; }) - all.begin();
  const std::string_view number = all.substr(0, static_cast<std::size_t>(end));
  const std::string_view unit_name = trimmed(all.substr(static_cast<std::size_t>(end)));
  if (std::ranges::count_if(number, is_digit) > digits_max) {
    refuse(text, fmt::format("has more than {} digits", digits_max), help);
  }
  const auto unit = std::ranges::find(units, unit_name, &Unit::name);
  const auto value = unit == units.end() ? std::nullopt : scaled(number, unit->size);
  if (!value) refuse(text, "cannot be read", help);
  if (*value > most) refuse(text, "is too large", help);
  return static_cast<std::int64_t>(*value);
}

// The whole text as a number from `least` to `most`.
template <typename Number>
Number parse_number(std::string_view text, Number least, Number most, std::string_view help) {
  const std::string_view all = trimmed(text);
  Number value{};
  const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), value);
  if (error == std::errc::invalid_argument || end != all.data() + all.size()) refuse(text, "cannot be read", help);
  if (error != std::errc{} || !(value >= least && value <= most)) refuse(text, "is out of range", help);
  return value;
}

}  // namespace

Time parse_duration(std::string_view text) {
  return parse_quantity(text, duration_units, time_max, text, duration_help);
}

Bytes parse_bytes(std::string_view text) { return parse_quantity(text, byte_units, bytes_max, text, byte_help); }

double parse_bandwidth(std::string_view text) {
  constexpr std::string_view help = "a bandwidth is bytes per second, as 50e9 or 50GB/s; 0 is infinite";
  std::string_view amount = trimmed(text);
  double plain = 0;
  const auto [end, error] = std::from_chars(amount.data(), amount.data() + amount.size(), plain);
  const bool is_plain = error == std::errc{} && end == amount.data() + amount.size();
  if (is_plain && std::isfinite(plain) && !std::signbit(plain)) return plain;
  if (amount.ends_with("/s")) amount.remove_suffix(2);
  return static_cast<double>(parse_quantity(amount, byte_units, bytes_max, text, help));
}

std::int64_t parse_integer(std::string_view text, std::int64_t least, std::int64_t most) {
  return parse_number(text, least, most, fmt::format("a whole number from {} to {} is expected", least, most));
}

double parse_real(std::string_view text) {
  constexpr double most = std::numeric_limits<double>::max();
  return parse_number(text, -most, most, "a finite decimal number is expected");
}

}  // namespace dualpipe
