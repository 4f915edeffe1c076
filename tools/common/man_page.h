// A manual page, in the language of man(7).
#pragma once

#include <string>
#include <string_view>

#include "tools/common/description.h"

namespace dualpipe {

// Of the tool, its subcommands included.
[[nodiscard]] std::string man_page(const CommandDescription& tool, std::string_view version);

}  // namespace dualpipe
