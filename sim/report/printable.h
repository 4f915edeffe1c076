// Text that is not ours, the names of files and what files hold, in what we print and write.
//
// Such text may be of any bytes. A terminal takes some for commands: an escape sequence in the name of a schedule could
// change colours, move the cursor or the window's title. XML cannot hold others, not even escaped, and JSON is UTF-8
// alone. Whatever prints or writes a name takes it from here.
#pragma once

#include <string>
#include <string_view>

namespace dualpipe {

// One line of valid UTF-8, all of it visible. What is not stands as '?': control characters (C0, DEL and C1), the
// separators of lines and paragraphs, what turns the direction of writing, U+FFFE and U+FFFF, and each byte that is no
// UTF-8.
[[nodiscard]] std::string printable(std::string_view text);

// The same, but line feeds stay: an error, with the names that it quotes.
[[nodiscard]] std::string printable_lines(std::string_view text);

// printable(), as the text or an attribute of an XML 1.0 document.
[[nodiscard]] std::string xml_text(std::string_view text);

// A JSON string in its quotes, of visible ASCII: all else is escaped, so that nothing is lost. But a byte that is no
// UTF-8, which JSON cannot say, becomes U+FFFD.
[[nodiscard]] std::string json_string(std::string_view text);

}  // namespace dualpipe
