#include "dualpipe/sim/costs/quantity.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <span>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t size;
};
constexpr Unit duration_units[] = {{"", 1'000'000},    {"ns", 1},         {"us", 1'000},       {"\u00b5s", 1'000},
                                   {"\u03bcs", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}};
constexpr Unit byte_units[] = {{"", 1},
                               {"B", 1},
                               {"KB", 1'000},
                               {"MB", 1'000'000},
                               {"GB", 1'000'000'000},
                               {"TB", 1'000'000'000'000},
                               {"KiB", 1LL << 10U},
                               {"MiB", 1LL << 20U},
                               {"GiB", 1LL << 30U},
                               {"TiB", 1LL << 40U}};
constexpr auto duration_help = "a duration is a number and ns, us, ms or s, or a bare number of milliseconds";
constexpr auto byte_help =
    "an amount is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, or a bare number of bytes";

[[noreturn]] void refuse(std::string_view text, std::string_view why, std::string_view help) {
  throw InputError(fmt::format("{} {}; {}", detail::schedule::quote(text), why, help));
}

std::string_view trimmed(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

// `amount` is what counts of `text`, which is quoted where it cannot be read: a decimal number without exponent, and a
// unit. Rounded half up.
std::int64_t parse_quantity(std::string_view amount, std::span<const Unit> units, std::int64_t most,
                            std::string_view text, std::string_view help) {
  constexpr int digits_max = 24;  // times the largest unit they fit into 128 bits
  const std::string_view all = trimmed(amount);
  if (all.starts_with('-')) refuse(text, "is negative", help);
  const std::string_view number = all.substr(0, all.find_first_not_of("0123456789."));
  const auto unit = std::ranges::find(units, trimmed(all.substr(number.size())), &Unit::name);
  __extension__ __int128 numerator = 0, denominator = 1;
  int digits = 0, points = 0;
  for (const char c : number) {
    if (c == '.') {
      ++points;
      continue;
    }
    if (++digits > digits_max) refuse(text, fmt::format("has more than {} digits", digits_max), help);
    numerator = numerator * 10 + (c - '0');
    if (points > 0) denominator *= 10;
  }
  if (digits == 0 || points > 1 || unit == units.end()) refuse(text, "cannot be read", help);
  const auto value = (numerator * unit->size + denominator / 2) / denominator;
  if (value > most) refuse(text, "is too large", help);
  return static_cast<std::int64_t>(value);
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
  constexpr auto help = "a bandwidth is bytes per second, as 50e9 or 50GB/s; 0 is infinite";
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
