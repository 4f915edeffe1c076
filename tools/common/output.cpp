#include "tools/common/output.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "sim/schedule/error.h"

namespace dualpipe {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw InputError(fmt::format("cannot write {}: {}", what, errno != 0 ? std::strerror(errno) : "unknown reason"));
}

void write_stream(std::ostream& out, const std::string& name, const std::function<void(std::ostream&)>& write) {
  errno = 0;
  write(out);
  out.flush();
  if (!out) fail(name);
}

// `name` is what errors call it.
void write_file(const std::string& path, const std::string& name, const std::function<void(std::ostream&)>& write) {
  errno = 0;
  std::ofstream out(path, std::ios::binary);
  if (!out) fail(name);
  write_stream(out, name, write);
}

void write_beside(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write) {
  std::filesystem::path partial = path;
  partial += fmt::format(".{}.part", getpid());
  std::error_code ignored;
  try {
    write_file(partial.string(), path.string(), write);
    std::error_code error;
    std::filesystem::rename(partial, path, error);
    if (error) throw InputError(fmt::format("cannot write {}: {}", path.string(), error.message()));
  } catch (...) {
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

}  // namespace

void check_output(const std::string& path) {
  if (path == "-") return;
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) throw InputError(fmt::format("cannot write {}: is a folder", path));
  errno = 0;
  const bool is_file = !std::filesystem::exists(status) || std::filesystem::is_regular_file(status);
  const auto folder = std::filesystem::absolute(path).parent_path();
  if (access(is_file ? folder.c_str() : path.c_str(), W_OK) != 0) fail(path);
}

void write_output(const std::string& path, const std::function<void(std::ostream&)>& write) {
  if (path == "-") return write_stream(std::cout, "standard output", write);
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) throw InputError(fmt::format("cannot write {}: is a folder", path));
  // To a device or a pipe nothing can be moved.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    return write_file(path, path, write);
  // Through a link to its target, so that the link stays.
  write_beside(std::filesystem::exists(status) ? std::filesystem::canonical(path) : std::filesystem::path(path), write);
}

bool terminal_has_color() { return isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr; }

int terminal_width(int otherwise) {
  winsize size{};
  if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return otherwise;
  return size.ws_col;
}

}  // namespace dualpipe
