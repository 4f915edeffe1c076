#include "dualpipe/sim/report/text_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "dualpipe/sim/report/printable.h"

namespace dualpipe {
namespace {

// The magnitude, right for the smallest number too.
std::uint64_t magnitude(std::int64_t value) {
  const auto bits = static_cast<std::uint64_t>(value);
  return value < 0 ? ~bits + 1 : bits;
}

std::string without_trailing_zeros(std::string number) {
  number.erase(number.find_last_not_of('0') + 1);
  if (number.back() == '.') number.pop_back();
  return number;
}

// value / unit with at most `digits` significant digits, rounded half up; never fewer than the digits before the point.
std::string quotient(std::uint64_t value, std::uint64_t unit, int digits) {
  const std::uint64_t whole = value / unit;
  int decimals = digits;
  for (std::uint64_t rest = whole; rest > 0 && decimals > 0; rest /= 10) --decimals;
  std::string fraction;
  std::uint64_t remainder = value % unit;
  for (int i = 0; i < decimals; ++i) {
    remainder *= 10;  // unit is at most 2^50, so there is room
    fraction += static_cast<char>('0' + remainder / unit);
    remainder %= unit;
  }
  std::string number = fmt::format("{}{}", whole, fraction);
  if (remainder * 2 >= unit) {  // half up: carry from the last digit on
    std::size_t i = number.size();
    while (i > 0 && number[i - 1] == '9') number[--i] = '0';
    if (i > 0) {
      ++number[i - 1];
    } else {
      number.insert(number.begin(), '1');
    }
  }
  if (decimals == 0) return number;
  number.insert(number.size() - static_cast<std::size_t>(decimals), ".");
  return without_trailing_zeros(std::move(number));
}

// value / unit, a power of ten, with so many decimals, rounded half up.
std::string fixed(std::uint64_t value, std::uint64_t unit, int decimals) {
  std::uint64_t steps = 1;  // of a unit
  for (int i = 0; i < decimals; ++i) steps *= 10;
  const std::uint64_t step = unit / steps;
  const std::uint64_t rounded = value / step + (value % step * 2 >= step && step > 1 ? 1 : 0);
  return decimals == 0 ? fmt::format("{}", rounded)
                       : fmt::format("{}.{:0{}}", rounded / steps, rounded % steps, decimals);
}

struct NamedUnit {
  std::string_view name;
  std::uint64_t size;
};

// `step` is the ratio of neighbouring units: what rounds up to it is written as 1 of the next.
std::string in_units(std::int64_t value, std::span<const NamedUnit> units, std::string_view step) {
  const std::uint64_t size = magnitude(value);
  std::size_t i = units.size() - 1;
  while (i > 0 && size < units[i].size) --i;
  std::string number = quotient(size, units[i].size, 4);
  if (number == step && i + 1 < units.size()) {
    number = "1";
    ++i;
  }
  return fmt::format("{}{} {}", value < 0 ? "-" : "", number, units[i].name);
}

constexpr std::array<NamedUnit, 4> time_units{{{"ns", 1}, {"µs", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}}};

constexpr std::array<NamedUnit, 6> decimal_byte_units{{{"B", 1},
                                                       {"kB", 1'000},
                                                       {"MB", 1'000'000},
                                                       {"GB", 1'000'000'000},
                                                       {"TB", 1'000'000'000'000},
                                                       {"PB", 1'000'000'000'000'000}}};
constexpr std::array<NamedUnit, 6> byte_units{{{"B", 1},
                                               {"KiB", 1ULL << 10},
                                               {"MiB", 1ULL << 20},
                                               {"GiB", 1ULL << 30},
                                               {"TiB", 1ULL << 40},
                                               {"PiB", 1ULL << 50}}};

void append_aligned(std::string& out, std::string_view cell, std::size_t width, Align align) {
  const std::size_t padding = width - display_width(cell);
  if (align == Align::right) out.append(padding, ' ');
  out += cell;
  if (align == Align::left) out.append(padding, ' ');
}

// Of at most 80 columns, where no word is longer. All but the first are indented.
class Lines {
 public:
  explicit Lines(std::string_view first) : line_(first) {}

  void add(std::string_view word) {
    constexpr std::size_t width_max = 80;
    if (display_width(line_) + 1 + display_width(word) > width_max) {
      text_ += line_ + '\n';
      line_ = " ";
    }
    line_ += ' ';
    line_ += word;
  }
  [[nodiscard]] std::string take() const { return text_ + line_ + '\n'; }

 private:
  std::string text_;
  std::string line_;
};

std::string markdown_cell(std::string_view cell) {
  std::string escaped;
  for (const char c : cell) {
    if (c == '|') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

void append_csv_cell(std::string& out, std::string_view cell) {
  if (cell.find_first_of(",\"\r\n") == std::string_view::npos) {
    out += cell;
    return;
  }
  out += '"';
  for (const char c : cell) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
}

void TextTable::add_row(std::vector<std::string> cells) {
  assert(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

void TextTable::add_column(Column column, std::vector<std::string> cells) {
  if (columns_.empty()) rows_.resize(cells.size());
  assert(cells.size() == rows_.size());
  columns_.push_back(std::move(column));
  for (std::size_t i = 0; i < rows_.size(); ++i) rows_[i].push_back(std::move(cells[i]));
}

bool TextTable::has(std::string_view header) const {
  return std::ranges::find(columns_, header, &Column::header) != columns_.end();
}

std::vector<std::string> TextTable::narrow_to(std::size_t width) {
  const auto each = widths();
  std::vector<bool> stays(columns_.size(), true);
  const auto all = [&] {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < each.size(); ++i) sum += stays[i] ? each[i] + 2 : 0;
    return sum == 0 ? 0 : sum - 2;
  };
  while (all() > width) {
    int last = 0;
    for (std::size_t i = 0; i < columns_.size(); ++i) last = std::max(last, stays[i] ? columns_[i].rank : 0);
    if (last == 0) break;
    for (std::size_t i = 0; i < columns_.size(); ++i) stays[i] = stays[i] && columns_[i].rank != last;
  }
  std::vector<std::string> gone;
  TextTable narrow({});
  narrow.rows_.resize(rows_.size());
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (!stays[i]) {
      gone.push_back(std::move(columns_[i].header));
      continue;
    }
    narrow.columns_.push_back(std::move(columns_[i]));
    for (std::size_t row = 0; row < rows_.size(); ++row) narrow.rows_[row].push_back(std::move(rows_[row][i]));
  }
  *this = std::move(narrow);
  return gone;
}

std::vector<std::size_t> TextTable::widths() const {
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    std::size_t width = display_width(columns_[i].header);
    for (const auto& row : rows_) width = std::max(width, display_width(row[i]));
    widths.push_back(width);
  }
  return widths;
}

std::string TextTable::to_text() const {
  const auto width = widths();
  std::string out;
  const auto append_line = [&](const auto& cell_at) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (i > 0) out += "  ";
      append_aligned(out, cell_at(i), width[i], columns_[i].align);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    out += '\n';
  };
  append_line([&](std::size_t i) -> const std::string& { return columns_[i].header; });
  for (const auto& row : rows_) append_line([&](std::size_t i) -> const std::string& { return row[i]; });
  return out;
}

std::string TextTable::to_markdown() const {
  TextTable escaped({});
  for (const Column& column : columns_) escaped.columns_.push_back({markdown_cell(column.header), column.align});
  for (const auto& row : rows_) {
    auto& cells = escaped.rows_.emplace_back();
    for (const auto& cell : row) cells.push_back(markdown_cell(cell));
  }
  auto width = escaped.widths();
  for (auto& w : width) w = std::max<std::size_t>(w, 3);  // room for the marks below

  std::string out;
  const auto append_line = [&](const auto& cell_at) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      out += "| ";
      append_aligned(out, cell_at(i), width[i], columns_[i].align);
      out += ' ';
    }
    out += "|\n";
  };
  append_line([&](std::size_t i) { return escaped.columns_[i].header; });
  append_line([&](std::size_t i) {
    const std::string dashes(width[i] - 1, '-');
    return columns_[i].align == Align::right ? dashes + ":" : ":" + dashes;
  });
  for (const auto& row : escaped.rows_) append_line([&](std::size_t i) { return row[i]; });
  return out;
}

std::string TextTable::to_html() const {
  std::string out = "<table>\n";
  const auto append_line = [&](std::string_view element, const auto& cell_at) {
    out += "<tr>";
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      out += fmt::format("<{0} style=\"text-align: {1}\">{2}</{0}>", element,
                         columns_[i].align == Align::right ? "right" : "left", xml_text(cell_at(i)));
    }
    out += "</tr>\n";
  };
  out += "<thead>";
  append_line("th", [&](std::size_t i) { return columns_[i].header; });
  out += "</thead>\n<tbody>\n";
  for (const auto& row : rows_) append_line("td", [&](std::size_t i) { return row[i]; });
  return out + "</tbody>\n</table>\n";
}

std::string TextTable::to_csv() const {
  std::string out;
  const auto append_line = [&](const auto& cell_at) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (i > 0) out += ',';
      append_csv_cell(out, cell_at(i));
    }
    out += '\n';
  };
  append_line([&](std::size_t i) -> const std::string& { return columns_[i].header; });
  for (const auto& row : rows_) append_line([&](std::size_t i) -> const std::string& { return row[i]; });
  return out;
}

std::size_t display_width(std::string_view text) {
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; };
  return text.size() - static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues));
}

std::string format_time(Time time) { return in_units(time, time_units, "1000"); }

std::string format_time_exact(Time time) {
  const std::uint64_t size = magnitude(time);
  std::size_t i = time_units.size() - 1;
  while (i > 0 && size < time_units[i].size) --i;
  return fmt::format("{}{} {}", time < 0 ? "-" : "", quotient(size, time_units[i].size, 20), time_units[i].name);
}

std::vector<std::string> format_times(std::span<const std::optional<Time>> times) {
  constexpr int digits_max = 6;
  std::uint64_t smallest = std::numeric_limits<std::uint64_t>::max();  // but 0
  std::uint64_t largest = 0;
  for (const auto& time : times) {
    if (!time || *time == 0) continue;
    smallest = std::min(smallest, magnitude(*time));
    largest = std::max(largest, magnitude(*time));
  }
  std::size_t i = time_units.size() - 1;
  while (i > 0 && smallest < time_units[i].size) --i;
  constexpr std::uint64_t six_digits = 1'000'000;
  while (i + 1 < time_units.size() && largest / time_units[i].size >= six_digits) ++i;
  const NamedUnit unit = time_units[largest == 0 ? 0 : i];
  int decimals = 0;
  for (const auto& time : times) {
    std::uint64_t rest = time ? magnitude(*time) % unit.size : 0;
    int needed = 0;
    for (std::uint64_t place = unit.size; rest > 0; rest %= place) {
      place /= 10;
      ++needed;
    }
    decimals = std::max(decimals, needed);
  }
  int decimals_max = digits_max;
  for (std::uint64_t whole = largest / unit.size; whole > 0 && decimals_max > 0; whole /= 10) --decimals_max;
  decimals = std::min(decimals, decimals_max);
  std::vector<std::string> texts;
  for (const auto& time : times) {
    texts.push_back(
        time ? fmt::format("{}{} {}", *time < 0 ? "-" : "", fixed(magnitude(*time), unit.size, decimals), unit.name)
             : "");
  }
  return texts;
}

std::string format_bytes(Bytes bytes) { return in_units(bytes, byte_units, "1024"); }

std::string format_bytes(Bytes bytes, ByteUnits units) {
  return units == ByteUnits::binary ? format_bytes(bytes) : in_units(bytes, decimal_byte_units, "1000");
}

std::string format_rate(double rate) {
  const double percent = std::abs(rate) < 0.000'05 ? 0 : rate * 100;  // no "-0.00%"
  return fmt::format("{:.2f}%", percent);
}

std::string wrapped_list(std::string_view head, std::span<const std::string> items) {
  Lines lines(head);
  for (std::size_t i = 0; i < items.size(); ++i) lines.add(items[i] + (i + 1 < items.size() ? "," : ""));
  return lines.take();
}

std::string wrapped(std::string_view text) {
  std::size_t end = std::min(text.find(' '), text.size());
  Lines lines(text.substr(0, end));
  while (end < text.size()) {
    const std::size_t begin = end + 1;
    end = std::min(text.find(' ', begin), text.size());
    lines.add(text.substr(begin, end - begin));
  }
  return lines.take();
}

std::string no_room_text(std::size_t width) { return fmt::format("no room in {} columns (--width) for:", width); }

std::string format_count(std::uint64_t count, std::string_view noun, std::string_view plural_ending) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : plural_ending);
}

}  // namespace dualpipe
