// The cells of a CSV file, one after another. Private to csv.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>

namespace dualpipe::detail::schedule {

// Through a buffer of fixed size, whatever the length of file, lines and cells. What tools add around the cells is
// gone: a byte order mark, spaces, quotes, and comments from a '#' to the end of the line.
class CellReader {
 public:
  struct Text {
    std::string_view text;  // valid until the next call
    bool ends_row;
    bool is_comment;  // the line has nothing else, and is no row
  };

  // `source` names the file in errors, and must outlive the reader. Throws InputError for a file in UTF-16.
  CellReader(std::istream& in, const std::string& source);

  // Nothing at the end of the file. Throws InputError where the cell is longer than any op, or cannot be read.
  [[nodiscard]] std::optional<Text> next();

  // Both count from 1.
  [[nodiscard]] std::size_t line() const { return line_; }
  [[nodiscard]] std::size_t column() const { return column_; }

  // An error at the cell that was read last.
  [[noreturn]] void fail(std::string_view what) const;

 private:
  [[nodiscard]] std::string_view buffered() const { return {buffer_.data() + begin_, end_ - begin_}; }
  void start_row();
  void fill();
  void skip_comment();
  [[nodiscard]] std::string_view unquoted(std::string_view text) const;

  std::istream& in_;
  const std::string& source_;
  std::array<char, std::size_t{1} << 16U> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t line_ = 1;
  std::size_t column_ = 0;
  std::size_t cells_ = 0;
  bool ends_row_ = false;
  bool is_at_comment_ = false;
};

}  // namespace dualpipe::detail::schedule
