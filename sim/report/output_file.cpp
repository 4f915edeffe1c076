#include "dualpipe/sim/report/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

namespace fs = std::filesystem;

// Of POSIX's functions, which return less than 0 where they fail, and leave the reason in errno.
void check_done(int result, const std::string& name) {
  if (result >= 0) return;
  throw InputError(fmt::format("cannot write {}: {}", name, errno != 0 ? std::strerror(errno) : "unknown reason"));
}

struct Descriptor {
  const int number;
  ~Descriptor() { ::close(number); }
};

fs::path folder_of(const fs::path& path) { return fs::absolute(path).parent_path(); }

// Whether it is the name of an open file: /dev/fd/1, or /proc/self/fd/1, where /dev/stdout leads.
bool is_descriptor(const fs::path& path) {
  std::error_code error;
  const fs::path folder = fs::canonical(folder_of(path), error);
  return !error && folder.filename() == "fd" && folder.string().starts_with("/proc/");
}

// Whether a new file takes its place; else it is a device or a pipe. Throws for a folder.
bool is_replaced(const std::string& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (fs::is_directory(status)) throw InputError(fmt::format("cannot write {}: is a folder", path));
  return !fs::exists(status) || fs::is_regular_file(status);
}

void write_stream(const std::string& path, const std::string& name, const std::function<void(std::ostream&)>& write) {
  errno = 0;
  std::ofstream out(path, std::ios::binary);
  if (out) write(out);
  out.close();
  check_done(out ? 0 : -1, name);
}

// Some file systems cannot do that to a folder, and say EINVAL.
void flush_to_disk(const fs::path& path, int flags, const std::string& name) {
  const Descriptor file{::open(path.c_str(), flags | O_CLOEXEC)};
  check_done(file.number, name);
  check_done(::fsync(file.number) == 0 || errno == EINVAL ? 0 : -1, name);
}

}  // namespace

fs::path target_of_output(const std::string& path) {
  fs::path target = path;
  std::error_code error;
  for (int links_left = 40; links_left > 0; --links_left) {  // as many as Linux follows
    if (is_descriptor(target)) {  // to be replaced: what is written to it otherwise would be lost
      throw InputError(fmt::format(
          "cannot write {}: is a file that is open already; give its name, or - for standard output", path));
    }
    const fs::path next = fs::read_symlink(target, error);
    if (error) break;
    target = folder_of(target) / next;
  }
  return target;
}

void write_checked(std::ostream& out, const std::string& name, const std::function<void(std::ostream&)>& write) {
  errno = 0;
  write(out);
  check_done(out.flush() ? 0 : -1, name);
}

void write_output_file(const std::string& path, const std::function<void(std::ostream&)>& write, Durable durable) {
  if (!is_replaced(path)) return write_stream(path, path, write);
  const fs::path target = target_of_output(path);  // so that a link stays
  const std::string part = fmt::format("{}.{}.part", target.string(), getpid());
  const Descriptor unnamed{::open(folder_of(target).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666)};
  const std::string link = fmt::format("/proc/self/fd/{}", unnamed.number);
  const bool is_unnamed = ::access(link.c_str(), W_OK) == 0;
  try {
    write_stream(is_unnamed ? link : part, path, write);
    if (durable == Durable::yes) flush_to_disk(is_unnamed ? link : part, O_WRONLY, path);
    if (is_unnamed) {
      ::unlink(part.c_str());  // of a process that was killed right here, and had our number
      check_done(::linkat(AT_FDCWD, link.c_str(), AT_FDCWD, part.c_str(), AT_SYMLINK_FOLLOW), path);
    }
    check_done(::rename(part.c_str(), target.c_str()), path);
  } catch (...) {
    ::unlink(part.c_str());
    throw;
  }
  if (durable == Durable::yes) flush_to_disk(folder_of(target), O_RDONLY | O_DIRECTORY, path);  // its name, too
}

void check_output_file(const std::string& path) {
  const fs::path written = is_replaced(path) ? folder_of(target_of_output(path)) : fs::path(path);
  errno = 0;
  check_done(::access(written.c_str(), W_OK), path);
}

}  // namespace dualpipe
