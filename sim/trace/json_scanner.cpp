#include "dualpipe/sim/trace/json_scanner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::trace {
namespace {

constexpr std::size_t buffer_size = std::size_t{1} << 18U;  // stays in a core's own cache
constexpr std::size_t event_size_max = std::size_t{1} << 26U;
constexpr std::size_t depth_max = 64;

constexpr bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// What goes on in a string: neither its end, nor an escape, nor a control character.
constexpr auto is_plain = [] {
  std::array<bool, 256> plain{};
  for (std::size_t c = 0x20; c < plain.size(); ++c) plain[c] = c != '"' && c != '\\';
  return plain;
}();

// What numbers and literals are made of.
constexpr bool is_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '+' || c == '.';
}

// NaN and Infinity are not JSON, but Python writes them.
bool is_number_or_literal(std::string_view word) {
  constexpr std::array<std::string_view, 5> literals = {"true", "false", "null", "NaN", "Infinity"};
  if (word.starts_with("-")) word.remove_prefix(1);
  const bool digit = !word.empty() && word[0] >= '0' && word[0] <= '9';
  return digit || std::ranges::find(literals, word) != literals.end();
}

// A code point below 2^21 as UTF-8.
void append_utf8(std::string& text, std::uint32_t code) {
  const auto byte = [&](std::uint32_t bits) { text += static_cast<char>(bits); };
  if (code < 0x80) return byte(code);
  if (code < 0x800) {
    byte(0xc0U | code >> 6U);
  } else if (code < 0x10000) {
    byte(0xe0U | code >> 12U);
    byte(0x80U | (code >> 6U & 0x3fU));
  } else {
    byte(0xf0U | code >> 18U);
    byte(0x80U | (code >> 12U & 0x3fU));
    byte(0x80U | (code >> 6U & 0x3fU));
  }
  byte(0x80U | (code & 0x3fU));
}

// The four hexadecimal digits of \uXXXX, which are taken from `rest`.
std::optional<std::uint32_t> take_code_unit(std::string_view& rest) {
  std::uint32_t unit = 0;
  if (rest.size() < 4) return std::nullopt;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + 4, unit, 16);
  if (error != std::errc{} || end != rest.data() + 4) return std::nullopt;
  rest.remove_prefix(4);
  return unit;
}

// What stands behind \u. Beyond 16 bits it is a pair of surrogates; a lone one stands for nothing.
bool append_code_point(std::string& text, std::string_view& rest) {
  const auto first = take_code_unit(rest);
  if (!first) return false;
  if (*first < 0xd800 || *first > 0xdfff) return append_utf8(text, *first), true;
  if (*first > 0xdbff || !rest.starts_with("\\u")) return false;
  rest.remove_prefix(2);
  const auto second = take_code_unit(rest);
  if (!second || *second < 0xdc00 || *second > 0xdfff) return false;
  append_utf8(text, 0x10000U + ((*first - 0xd800U) << 10U) + (*second - 0xdc00U));
  return true;
}

}  // namespace

JsonScanner::JsonScanner(ByteInput& input, const std::string& source)
    : input_(input), source_(source), buffer_(buffer_size) {
  static_cast<void>(refill());
  constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
  if (std::string_view(buffer_.data(), end_).starts_with(byte_order_mark)) at_ = byte_order_mark.size();
}

std::optional<char> JsonScanner::peek() {
  do {
    while (at_ < end_ && is_space(buffer_[at_])) ++at_;
    if (at_ < end_) return buffer_[at_];
  } while (refill());
  return std::nullopt;
}

bool JsonScanner::take(char c) {
  const bool is_next = peek() == c;
  if (is_next) ++at_;
  return is_next;
}

void JsonScanner::expect(char c, std::string_view context) {
  if (!take(c)) fail_unexpected(context);
}

void JsonScanner::mark() {
  marked_ = true;
  mark_ = at_;
}

JsonScanner::Slice JsonScanner::key() {
  constexpr std::string_view context = "object key";
  if (peek() != '"') fail_unexpected(context);
  const std::size_t begin = offset();
  skip_string(context);
  const std::size_t size = offset() - begin;
  expect(':', "object separator");
  return {begin, size};
}

JsonScanner::Slice JsonScanner::value() {
  static_cast<void>(peek());
  const std::size_t begin = offset();
  skip_value(0);
  return {begin, offset() - begin};
}

void JsonScanner::fail_unexpected(std::string_view context) {
  const bool at_end = at_ == end_ && !refill();
  constexpr std::size_t near_max = 40;
  const std::string_view rest(buffer_.data() + at_, std::min(near_max, end_ - at_));
  if (rest.starts_with('\0')) {
    const std::string here = place();
    throw InputError(here.substr(0, here.rfind(':')) + ": a NUL byte, which no JSON text has");
  }
  const std::string what = at_end ? "unexpected end of input" : "unexpected " + detail::schedule::quote(rest);
  throw InputError(fmt::format("{}: syntax error while parsing {} - {}", place(), context, what));
}

// More of the text, behind what is still needed of it.
bool JsonScanner::refill() {
  forget(marked_ ? mark_ : at_);
  if (end_ == buffer_.size()) {
    if (buffer_.size() >= event_size_max) {
      throw InputError(fmt::format("{}: an event of more than {} MiB", place(), event_size_max >> 20U));
    }
    buffer_.resize(buffer_.size() * 2);
  }
  const std::size_t count = input_.read(buffer_.data() + end_, buffer_.size() - end_);
  end_ += count;
  return count > 0;
}

void JsonScanner::forget(std::size_t count) {
  const std::string_view forgotten(buffer_.data(), count);
  const auto lines = static_cast<std::size_t>(std::ranges::count(forgotten, '\n'));
  column_ = lines == 0 ? column_ + count : count - forgotten.rfind('\n') - 1;
  line_ += lines;
  std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(count), buffer_.begin() + static_cast<std::ptrdiff_t>(end_),
            buffer_.begin());
  at_ -= count;
  end_ -= count;
  mark_ = 0;
}

std::string JsonScanner::place() const {
  const std::string_view before(buffer_.data(), at_);
  const auto lines = static_cast<std::size_t>(std::ranges::count(before, '\n'));
  const std::size_t column = lines == 0 ? column_ + at_ : at_ - before.rfind('\n') - 1;
  return fmt::format("{}:{}:{}", source_, line_ + lines, column + 1);
}

void JsonScanner::skip_string(std::string_view context) {
  ++at_;
  while (true) {
    while (at_ < end_ && is_plain[static_cast<unsigned char>(buffer_[at_])]) ++at_;
    if (at_ == end_) {
      if (!refill()) fail_unexpected(context);
      continue;
    }
    if (buffer_[at_] == '"') break;
    if (buffer_[at_] != '\\') fail_unexpected(context);  // a control character
    ++at_;
    if (at_ == end_ && !refill()) fail_unexpected(context);
    ++at_;
  }
  ++at_;
}

void JsonScanner::skip_word() {
  std::array<char, 10> word{};  // the longest literal is -Infinity; the rest of a number does not matter
  std::size_t size = 0;
  do {
    for (; at_ < end_ && is_word(buffer_[at_]); ++at_) {
      if (size < word.size()) word[size++] = buffer_[at_];
    }
  } while (at_ == end_ && refill());
  if (is_number_or_literal(std::string_view(word.data(), size))) return;
  if (size == 0) fail_unexpected("value");
  throw InputError(fmt::format("{}: syntax error while parsing value - invalid literal, near {}", place(),
                               detail::schedule::quote(std::string_view(word.data(), size))));
}

void JsonScanner::skip_value(std::size_t depth) {
  const auto next = peek();
  if (next == '"') return skip_string("value");
  if (next == '{' || next == '[') return skip_nested(*next, depth + 1);
  skip_word();
}

void JsonScanner::skip_nested(char open, std::size_t depth) {
  if (depth > depth_max) throw InputError(fmt::format("{}: nested too deeply", source_));
  const char close = open == '{' ? '}' : ']';
  const std::string_view context = open == '{' ? "object" : "array";
  ++at_;
  if (take(close)) return;
  do {
    if (open == '{') static_cast<void>(key());
    skip_value(depth);
  } while (take(','));
  expect(close, context);
}

std::optional<std::string> decoded_string(std::string_view json) {
  if (json.size() < 2 || json.front() != '"') return std::nullopt;
  std::string_view rest = json.substr(1, json.size() - 2);
  std::string text;
  while (!rest.empty()) {
    const std::size_t plain = std::min(rest.find('\\'), rest.size());
    text += rest.substr(0, plain);
    rest.remove_prefix(plain);
    if (rest.empty()) break;
    const char escaped = rest[1];  // there is one: a backslash does not end a string
    rest.remove_prefix(2);
    constexpr std::string_view escapes = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const std::size_t known = escapes.find(escaped);
    if (known != std::string_view::npos) {
      text += meanings[known];
    } else if (escaped != 'u' || !append_code_point(text, rest)) {
      return std::nullopt;
    }
  }
  return text;
}

}  // namespace dualpipe::detail::trace
