// A table of text cells, and the one way in which times, bytes and rates are printed for people.
//
//   rank  busy   idle  peak op          | rank | busy | idle | peak op |        rank,busy,idle,peak op
//      0  20 ms  2 ms  (0F1;7B0)        | ---: | ---: | ---: | :------ |        0,20 ms,2 ms,(0F1;7B0)
//      1  21 ms  1 ms  1F2              |    0 | …
//
//   to_text()                           to_markdown()                           to_csv()
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

enum class Align : std::uint8_t { left, right };

// GiB or GB.
enum class ByteUnits : std::uint8_t { binary, decimal };

struct Column {
  std::string header;
  Align align = Align::right;
  int rank = 0;  // where there is no room for all columns, those of the largest rank go first, all at once; 0: it stays
};

class TextTable {
 public:
  explicit TextTable(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as there are columns.
  void add_row(std::vector<std::string> cells);
  // One cell for each row, top down.
  void add_column(Column column, std::vector<std::string> cells);

  [[nodiscard]] bool has(std::string_view header) const;

  // Takes columns out until the lines of to_text() have at most so many columns of a terminal, or only those are left
  // that stay. Returns the headers of what went, from the left.
  std::vector<std::string> narrow_to(std::size_t width);

  [[nodiscard]] std::string to_text() const;      // aligned, two blanks between columns
  [[nodiscard]] std::string to_markdown() const;  // a pipe table; '|' in cells is escaped
  [[nodiscard]] std::string to_html() const;      // a <table>, for a page that has others
  [[nodiscard]] std::string to_csv() const;       // RFC 4180, but for '\n' at the end of lines, as in all of our files

 private:
  [[nodiscard]] std::vector<std::size_t> widths() const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// How people see a report.
struct TextLayout {
  std::size_t width = 0;  // columns of the terminal: what matters less is left out; 0: all is there
  ByteUnits bytes = ByteUnits::binary;
};

// How many columns of a terminal it takes: UTF-8 code points. (No cell of ours has wide or combining ones.)
[[nodiscard]] std::size_t display_width(std::string_view text);

// In the largest of ns, µs, ms and s in which it is at least 1, with at most four digits: "850 µs", "1.25 ms", "12.35
// s". It is rounded half up where four digits are not enough. From 10,000 s on it is in whole seconds.
[[nodiscard]] std::string format_time(Time time);
// The same with all digits: "1.234567 ms".
[[nodiscard]] std::string format_time_exact(Time time);
// Those of one column: in one unit, that of the largest, and with as many decimals as the one needs that needs most,
// but seven digits at most. "" where there is none.
[[nodiscard]] std::vector<std::string> format_times(std::span<const std::optional<Time>> times);
// In the largest of B, KiB, MiB, GiB, TiB, PiB in which it is at least 1, with at most four digits: "1.5 GiB".
[[nodiscard]] std::string format_bytes(Bytes bytes);
// Or of B, kB, MB, GB, TB, PB.
[[nodiscard]] std::string format_bytes(Bytes bytes, ByteUnits units);
// "4.55%": two decimals.
[[nodiscard]] std::string format_rate(double rate);

// "head item, item, …", each line with its end, broken between items where it would be longer than 80 columns.
[[nodiscard]] std::string wrapped_list(std::string_view head, std::span<const std::string> items);

// A text, broken between words in the same way.
[[nodiscard]] std::string wrapped(std::string_view text);

// A cell of a CSV (RFC 4180), in quotes where it has to be.
void append_csv_cell(std::string& out, std::string_view cell);

// What stands before the headers of the columns that narrow_to() took out.
[[nodiscard]] std::string no_room_text(std::size_t width);

// "1 rank", "8 ranks", "2 micro-batches".
[[nodiscard]] std::string format_count(std::uint64_t count, std::string_view noun,
                                       std::string_view plural_ending = "s");

}  // namespace dualpipe
