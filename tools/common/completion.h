// Scripts by which shells complete a command line.
#pragma once

#include <string>
#include <string_view>

#include "tools/common/description.h"

namespace dualpipe {

// For `shell`: bash, zsh or fish. Subcommands, options, values of which there are some, names of schedules, and files.
[[nodiscard]] std::string completion_script(const CommandDescription& tool, std::string_view shell);

}  // namespace dualpipe
