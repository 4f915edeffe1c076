// --help, and text in lines of a given width.
#pragma once

#include <string>
#include <string_view>

#include "tools/common/description.h"

namespace dualpipe {

// The words of a paragraph in lines of at most so many columns, but for a word that is longer; each line but the first
// behind `indent` blanks, which the first one has behind it already. No line feed at the end.
[[nodiscard]] std::string wrapped(std::string_view paragraph, int width, int indent = 0);

// A command in lines that a shell takes for one: all but the last end with a backslash. They are broken before options,
// where that helps.
[[nodiscard]] std::string wrapped_command(std::string_view command, int width);

[[nodiscard]] std::string help_text(const CommandDescription& command, int width);

// Of --help on standard output: 80 columns, or what the terminal has where that is less.
[[nodiscard]] int help_width();

}  // namespace dualpipe
