#include "dualpipe/sim/schedule/nearest.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

namespace dualpipe {
namespace {

constexpr std::size_t letters_per_slip = 3;  // also the fewest that a beginning must have

bool is_decimal_digit(char c) { return c >= '0' && c <= '9'; }

// What counts of a name.
std::string bare(std::string_view name) {
  std::string letters;
  for (const char c : name) {
    if (c != '-' && c != '_') letters += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return letters;
}

// The optimal string alignment distance. To replace one digit by another costs as much as to leave it out and to insert
// the other one.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> of(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) of[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) of[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const char x = a[i - 1], y = b[j - 1];
      const std::size_t replaced = x == y ? 0 : is_decimal_digit(x) && is_decimal_digit(y) ? 2 : 1;
      of[i][j] = std::min({of[i - 1][j] + 1, of[i][j - 1] + 1, of[i - 1][j - 1] + replaced});
      if (i > 1 && j > 1 && x == b[j - 2] && a[i - 2] == y) of[i][j] = std::min(of[i][j], of[i - 2][j - 2] + 1);
    }
  }
  return of[a.size()][b.size()];
}

}  // namespace

std::string_view nearest_name(std::string_view typed, std::span<const std::string> names) {
  constexpr std::size_t length_max = 64;  // no name is longer, and the distance takes the product of both lengths
  const std::string wanted = bare(typed.substr(0, length_max));
  std::string_view nearest;
  std::size_t least = std::numeric_limits<std::size_t>::max();
  std::vector<std::string_view> begun;
  for (const std::string& name : names) {
    const std::string letters = bare(name);
    if (wanted.size() >= letters_per_slip && letters.starts_with(wanted)) begun.push_back(name);
    const std::size_t slips = distance(wanted, letters);
    if (slips > wanted.size() / letters_per_slip || slips >= least) continue;
    nearest = name;
    least = slips;
  }
  return nearest.empty() && begun.size() == 1 ? begun[0] : nearest;
}

std::string did_you_mean(std::string_view typed, std::span<const std::string> names) {
  const std::string_view nearest = nearest_name(typed, names);
  return nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest);
}

}  // namespace dualpipe
