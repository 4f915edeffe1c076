// Files that are read, whatever their format.
#pragma once

#include <fstream>
#include <string>

namespace dualpipe {

// Throws InputError that names the path and the system's reason; also for a folder.
[[nodiscard]] std::ifstream open_input_file(const std::string& path);

}  // namespace dualpipe
