// How error messages show a user's text. Private to the readers.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dualpipe::detail::schedule {

// The text in single quotes, cut after 40 characters, and with all but printable ASCII escaped: so a message is one
// readable line, whatever the file held.
[[nodiscard]] inline std::string quote(std::string_view text) {
  constexpr std::size_t length_max = 40;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string result = "'";
  for (const char c : text.substr(0, length_max)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      result += c;
    } else {
      result += {'\\', 'x', digits[byte >> 4U], digits[byte & 0xfU]};
    }
  }
  result += text.size() > length_max ? "…'" : "'";
  return result;
}

}  // namespace dualpipe::detail::schedule
