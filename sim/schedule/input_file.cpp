#include "dualpipe/sim/schedule/input_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

std::ifstream open_input_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) throw InputError(fmt::format("{}: is a folder, not a file", path));
  if (!in) throw InputError(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  return in;
}

}  // namespace dualpipe
