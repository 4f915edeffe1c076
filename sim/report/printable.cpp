#include "dualpipe/sim/report/printable.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>

namespace dualpipe {
namespace {

// What a text begins with: a character, or a byte that begins none.
struct Piece {
  std::string_view bytes;
  char32_t character = 0;
  bool is_utf8 = false;
};

// The text must not be empty. (Unicode 15, table 3-7: the shortest form alone, no surrogates.)
Piece first_piece(std::string_view text) {
  struct Utf8Form {
    unsigned lead_mask, lead;
    char32_t least;  // that needs so many bytes
  };
  constexpr std::array<Utf8Form, 4> forms{
      {{0x80U, 0x00U, 0}, {0xe0U, 0xc0U, 0x80}, {0xf0U, 0xe0U, 0x800}, {0xf8U, 0xf0U, 0x10000}}};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const Piece none{text.substr(0, 1)};
  std::size_t size = 1;
  while (size <= forms.size() && (byte(0) & forms[size - 1].lead_mask) != forms[size - 1].lead) ++size;
  if (size > forms.size() || size > text.size()) return none;
  char32_t character = byte(0) & ~forms[size - 1].lead_mask & 0xffU;
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) return none;
    character = character << 6U | (byte(i) & 0x3fU);
  }
  const bool is_surrogate = character >= 0xd800 && character <= 0xdfff;
  if (character < forms[size - 1].least || character > 0x10ffff || is_surrogate) return none;
  return {text.substr(0, size), character, true};
}

bool is_visible(char32_t character) {
  const auto within = [&](char32_t first, char32_t last) { return character >= first && character <= last; };
  return !within(0, 0x1f) && !within(0x7f, 0x9f) && !within(0x200e, 0x200f) && !within(0x2028, 0x202e) &&
         !within(0x2066, 0x2069) && !within(0xfffe, 0xffff) && character != 0x61c;
}

// Calls visit(piece) for all of the text.
template <typename Visit>
void for_each_piece(std::string_view text, Visit visit) {
  while (!text.empty()) {
    const Piece piece = first_piece(text);
    visit(piece);
    text.remove_prefix(piece.bytes.size());
  }
}

std::string replaced(std::string_view text, bool keeps_lines) {
  std::string result;
  for_each_piece(text, [&](const Piece& piece) {
    const bool stays = (piece.is_utf8 && is_visible(piece.character)) || (keeps_lines && piece.character == '\n');
    result += stays ? piece.bytes : "?";
  });
  return result;
}

}  // namespace

std::string printable(std::string_view text) { return replaced(text, false); }

std::string printable_lines(std::string_view text) { return replaced(text, true); }

std::string xml_text(std::string_view text) {
  std::string result;
  for (const char c : printable(text)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string json_string(std::string_view text) {
  std::string result = "\"";
  const auto escape = [&](char32_t unit) { result += fmt::format("\\u{:04x}", static_cast<unsigned>(unit)); };
  for_each_piece(text, [&](const Piece& piece) {
    const char32_t character = piece.character;
    if (!piece.is_utf8) {
      escape(0xfffd);
    } else if (character == '"' || character == '\\') {
      (result += '\\') += piece.bytes;
    } else if (character < 0x80 && is_visible(character)) {
      result += piece.bytes;
    } else if (character < 0x10000) {
      escape(character);
    } else {  // JSON has it in UTF-16
      escape(0xd800 + ((character - 0x10000) >> 10U));
      escape(0xdc00 + ((character - 0x10000) & 0x3ffU));
    }
  });
  return result + '"';
}

}  // namespace dualpipe
