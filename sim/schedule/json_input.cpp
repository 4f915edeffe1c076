#include "dualpipe/sim/schedule/json_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::schedule {
namespace {

constexpr std::size_t token_length_max = std::size_t{1} << 16U;

// The number after the label.
std::size_t number_after(std::string_view label, std::string_view text) {
  std::size_t number = 0;
  const auto at = text.find(label);
  if (at != std::string_view::npos) std::from_chars(text.data() + at + label.size(), text.data() + text.size(), number);
  return number;
}

}  // namespace

GuardedInput::int_type GuardedInput::underflow() {
  if (!in_.good()) return traits_type::eof();
  in_.read(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
  if (in_.bad()) throw InputError(fmt::format("{}: cannot be read", source_));
  const auto size = static_cast<std::size_t>(in_.gcount());
  for (const char c : std::string_view(buffer_.data(), size)) inspect(c);
  setg(buffer_.data(), buffer_.data(), buffer_.data() + size);
  return size == 0 ? traits_type::eof() : traits_type::to_int_type(buffer_[0]);
}

void GuardedInput::inspect(char c) {
  if (c == '\0') fail("a NUL byte, which no JSON text has");
  if (c == '\n') ++line_;
  const bool is_quote = c == '"' && !escaped_;
  const bool ends_token = is_quote || (!in_string_ && std::string_view("[]{},:").find(c) != std::string_view::npos);
  if (is_quote) in_string_ = !in_string_;
  escaped_ = in_string_ && c == '\\' && !escaped_;
  length_ = ends_token ? 0 : length_ + 1;
  if (length_ > token_length_max) fail(fmt::format("a value of more than {} characters", token_length_max));
}

void GuardedInput::fail(std::string_view what) const {
  throw InputError(fmt::format("{}:{}: {}", source_, line_, what));
}

std::string json_syntax_error(const std::string& source, std::string_view what, std::string_view last_token) {
  constexpr std::size_t near_max = 40;
  const auto place = fmt::format("{}:{}:{}", source, number_after("at line ", what), number_after(", column ", what));
  const auto reason_at = std::min(what.find("syntax error"), what.size());
  const auto raw_at = what.find("; last read: ");
  const auto reason = what.substr(reason_at, raw_at - reason_at);
  if (raw_at == std::string_view::npos) return fmt::format("{}: {}", place, reason);
  const auto shown = last_token.substr(last_token.size() - std::min(last_token.size(), near_max));
  return fmt::format("{}: {}, near {}", place, reason, quote(shown));
}

}  // namespace dualpipe::detail::schedule
