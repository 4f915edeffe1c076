#include "dualpipe/exec/model/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::model {
namespace {

[[noreturn]] void refuse_by_system(const std::string& path, std::string_view what) {
  throw InputError(fmt::format("{}: cannot be {}: {}", path, what, std::strerror(errno)));
}

std::span<const std::byte> map(const std::string& path, int file, std::string_view content) {
  struct stat status = {};
  if (::fstat(file, &status) != 0) refuse_by_system(path, "read");
  if (!S_ISREG(status.st_mode)) {
    throw InputError(fmt::format("{}: is not a regular file; give a file of {}", path, content));
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return {};
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (address == MAP_FAILED) refuse_by_system(path, "mapped into memory");
  return {static_cast<const std::byte*>(address), size};
}

}  // namespace

MappedFile::MappedFile(const std::string& path, std::string_view content) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused, not waited for
  if (file < 0) refuse_by_system(path, "opened");
  try {
    bytes_ = map(path, file, content);
  } catch (...) {
    ::close(file);
    throw;
  }
  ::close(file);  // the mapping stays
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace dualpipe::detail::model
