#include "dualpipe/sim/costs/quantity.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <limits>
#include <span>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t size;
  bool is_whole = false;  // there is no part of one
};
constexpr Unit duration_units[] = {{"", 1'000'000},    {"ns", 1},         {"us", 1'000},       {"\u00b5s", 1'000},
                                   {"\u03bcs", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}};
constexpr Unit byte_units[] = {{"", 1, true},       {"B", 1, true},        {"KB", 1'000},
                               {"MB", 1'000'000},   {"GB", 1'000'000'000}, {"TB", 1'000'000'000'000},
                               {"KiB", 1LL << 10U}, {"MiB", 1LL << 20U},   {"GiB", 1LL << 30U},
                               {"TiB", 1LL << 40U}};
// As links are sold. Bytes have the units of amounts.
constexpr Unit bit_units[] = {{"b", 1},
                              {"kb", 1'000},
                              {"Kb", 1'000},
                              {"Mb", 1'000'000},
                              {"Gb", 1'000'000'000},
                              {"Tb", 1'000'000'000'000},
                              {"bit", 1},
                              {"kbit", 1'000},
                              {"Kbit", 1'000},
                              {"Mbit", 1'000'000},
                              {"Gbit", 1'000'000'000},
                              {"Tbit", 1'000'000'000'000}};
constexpr std::int64_t bits_max = std::int64_t{1} << 62U;
constexpr auto duration_help = "a duration is a number and ns, us, ms or s, or a bare number of milliseconds";
constexpr auto byte_help =
    "an amount is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, or a bare number of bytes";
constexpr auto bandwidth_help =
    "a bandwidth is a number and a unit, as 50GB/s (bytes) or 400Gbps (bits); 0 is infinite";

constexpr std::int64_t micro_batches_max = 1'000'000 * MemoryLimit::per_micro_batch;

[[noreturn]] void refuse(std::string_view text, std::string_view why, std::string_view help) {
  throw InputError(fmt::format("{} {}; {}", detail::schedule::quote(text), why, help));
}

std::string_view trimmed(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

std::string_view number_of(std::string_view amount) {
  return amount.substr(0, amount.find_first_not_of("0123456789."));
}

// What stands behind the number.
std::string_view unit_of(std::string_view amount) { return trimmed(amount.substr(number_of(amount).size())); }

// `amount` is what counts of `text`, which is quoted where it cannot be read: a decimal number without exponent, and a
// unit. Rounded half up.
std::int64_t parse_quantity(std::string_view amount, std::span<const Unit> units, std::int64_t most,
                            std::string_view text, std::string_view help) {
  constexpr int digits_max = 24;  // times the largest unit they fit into 128 bits
  const std::string_view all = trimmed(amount);
  if (all.starts_with('-')) refuse(text, "is negative", help);
  const std::string_view number = number_of(all);
  const auto unit = std::ranges::find(units, unit_of(all), &Unit::name);
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
  if (unit->is_whole && numerator % denominator != 0) refuse(text, "is not a whole number of bytes", help);
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

Time parse_time_with_unit(std::string_view text) {
  constexpr auto help = "a time is a number and ns, us, ms or s, as 5s";
  const Time time = parse_quantity(text, duration_units, time_max, text, help);
  if (time != 0 && unit_of(trimmed(text)).empty()) refuse(text, "has no unit", help);
  return time;
}

Bytes parse_bytes(std::string_view text) { return parse_quantity(text, byte_units, bytes_max, text, byte_help); }

MemoryLimit parse_memory_limit(std::string_view text) {
  constexpr Unit units[] = {{"microbatch", MemoryLimit::per_micro_batch},
                            {"microbatches", MemoryLimit::per_micro_batch}};
  constexpr auto help =
      "a memory limit is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, a bare number of bytes, or a number of "
      "microbatches";
  const std::string_view amount = trimmed(text);
  const bool is_bytes = amount.find("micro") == amount.npos;
  if (is_bytes) return parse_quantity(amount, byte_units, bytes_max, text, help);
  return {parse_quantity(amount, units, micro_batches_max, text, help), MemoryLimit::Unit::micro_batches};
}

double parse_bandwidth(std::string_view text) {
  std::string_view amount = trimmed(text);
  const bool is_rate = amount.ends_with("/s") || amount.ends_with("ps");
  if (is_rate) amount.remove_suffix(2);
  const std::string_view unit = unit_of(trimmed(amount));
  if (is_rate && std::ranges::find(bit_units, unit, &Unit::name) != std::end(bit_units)) {
    return static_cast<double>(parse_quantity(amount, bit_units, bits_max, text, bandwidth_help)) / 8;
  }
  const auto bytes = parse_quantity(amount, byte_units, bytes_max, text, bandwidth_help);
  if (bytes != 0 && unit.empty()) refuse(text, "has no unit", bandwidth_help);
  return static_cast<double>(bytes);
}

std::int64_t parse_integer(std::string_view text, std::int64_t least, std::int64_t most) {
  return parse_number(text, least, most, fmt::format("a whole number from {} to {} is expected", least, most));
}

double parse_real(std::string_view text) {
  constexpr double most = std::numeric_limits<double>::max();
  return parse_number(text, -most, most, "a finite decimal number is expected");
}

std::vector<std::string_view> split_at(char separator, std::string_view text) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace dualpipe
