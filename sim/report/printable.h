// How we print and write text that is not ours: names of files, and names that stand in files.
//
// Such text may consist of any bytes. A terminal takes some of them as commands: an escape sequence in the name of a
// schedule could change colours, move the cursor or set the window's title. Others cannot stand in XML, not even
// escaped, and JSON must be UTF-8. So all code that prints or writes a name calls one of these functions.
#pragma once

#include <string>
#include <string_view>

namespace dualpipe {

// One line of valid UTF-8 in which all is visible. A '?' replaces each control character (C0, DEL and C1), each
// separator of lines or paragraphs, each character that changes the direction of writing, U+FFFE and U+FFFF, and each
// byte that is no UTF-8.
[[nodiscard]] std::string printable(std::string_view text);

// The same, but line feeds stay: an error, with the names that it quotes.
[[nodiscard]] std::string printable_lines(std::string_view text);

// printable(), as the text or an attribute of an XML 1.0 document.
[[nodiscard]] std::string xml_text(std::string_view text);

// A JSON string in its quotes, in visible ASCII: all other characters are escaped, so that nothing is lost. Only a byte
// that is no UTF-8, for which JSON has no escape, becomes U+FFFD.
[[nodiscard]] std::string json_string(std::string_view text);

}  // namespace dualpipe
