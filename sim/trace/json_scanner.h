// Walks through JSON text of any length, and gives what a caller wants of it as it stands in the file; all else costs
// no memory, and little time. It checks that the text is of one piece: brackets, quotes, commas, colons; what is in a
// number or behind a backslash is looked at by who reads the value. Private to sim/trace.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/trace/byte_input.h"

namespace dualpipe::detail::trace {

class JsonScanner {
 public:
  // A piece of the text, by its place behind the mark.
  struct Slice {
    std::size_t begin = 0;
    std::size_t size = 0;
  };

  JsonScanner(ByteInput& input, const std::string& source);

  // The next byte that is no white space, which is not taken. Nothing at the end of the text.
  [[nodiscard]] std::optional<char> peek();
  // Takes the next byte if it is this one.
  [[nodiscard]] bool take(char c);
  // Takes it, or fails. `context`: what is being read, for the error.
  void expect(char c, std::string_view context);

  // What follows stays in memory until unmark(): then slices are valid. At most event_size_max bytes.
  void mark();
  void unmark() { marked_ = false; }
  [[nodiscard]] std::string_view text(Slice slice) const { return {buffer_.data() + mark_ + slice.begin, slice.size}; }

  // Steps over a key and its colon, or over a value of any kind. The slice has a key's quotes. Slices mean something
  // only while there is a mark.
  Slice key();
  Slice value();

  // Throws InputError with the place: at the next byte, which is not what the context allows.
  [[noreturn]] void fail_unexpected(std::string_view context);

 private:
  [[nodiscard]] std::size_t offset() const { return at_ - mark_; }
  [[nodiscard]] bool refill();
  void forget(std::size_t count);
  void skip_string(std::string_view context);
  void skip_word();
  void skip_nested(char open, std::size_t depth);
  void skip_value(std::size_t depth);
  [[nodiscard]] std::string place() const;

  ByteInput& input_;
  const std::string& source_;
  std::vector<char> buffer_;
  std::size_t at_ = 0;    // the next byte, in the buffer
  std::size_t end_ = 0;   // of what the buffer holds
  std::size_t mark_ = 0;  // where slices count from
  bool marked_ = false;
  std::size_t line_ = 1;    // at the start of the buffer
  std::size_t column_ = 0;  // bytes of that line before the buffer
};

// The text that a string in its quotes stands for; nothing where it is no string, or an escape in it means nothing.
[[nodiscard]] std::optional<std::string> decoded_string(std::string_view json);

}  // namespace dualpipe::detail::trace
