// Parses JSON text that is not trusted, with nlohmann's parser behind a guard. Private to the readers.
#pragma once

#include <array>
#include <cstddef>
#include <istream>
#include <nlohmann/json.hpp>
#include <streambuf>
#include <string>
#include <string_view>

namespace dualpipe::detail::schedule {

// The input as the parser reads it. It throws InputError at a token so long that the parser, which keeps a token in
// memory, would use up the memory, and at a zero byte, which the parser would take for the end of the file.
class GuardedInput : public std::streambuf {
 public:
  GuardedInput(std::istream& in, const std::string& source) : in_(in), source_(source) {}

 protected:
  int_type underflow() override;

 private:
  void inspect(char c);
  [[noreturn]] void fail(std::string_view what) const;

  std::istream& in_;
  const std::string& source_;
  std::array<char, std::size_t{1} << 16U> buffer_;
  std::size_t line_ = 1;
  std::size_t length_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
};

// Calls `sax` with the events of one document, up to the end of the input. Throws InputError, as `sax` may do.
template <typename Sax>
void parse_json(std::istream& in, const std::string& source, Sax& sax) {
  GuardedInput input(in, source);
  std::istream guarded(&input);
  nlohmann::json::sax_parse(guarded, &sax);
}

// The library's id of the error that a number is out of range. Unlike its other errors this is not one of syntax.
inline constexpr int json_number_overflow = 406;

// The library says "[json.exception.parse_error.101] parse error at line 2, column 7: syntax error while parsing value
// - invalid literal; last read: '…'; expected …". This makes of it "file:2:7: syntax error while parsing value -
// invalid literal, near '…'", in which no raw bytes of the file stand.
[[nodiscard]] std::string json_syntax_error(const std::string& source, std::string_view what,
                                            std::string_view last_token);

}  // namespace dualpipe::detail::schedule
