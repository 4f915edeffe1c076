#include "dualpipe/sim/report/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& name) {
  throw InputError(fmt::format("cannot write {}: {}", name, errno != 0 ? std::strerror(errno) : "unknown reason"));
}

void refuse_folder(const std::string& path, const fs::file_status& status) {
  if (fs::is_directory(status)) throw InputError(fmt::format("cannot write {}: is a folder", path));
}

// A new file counts as one.
bool is_regular(const fs::file_status& status) { return !fs::exists(status) || fs::is_regular_file(status); }

fs::path folder_of(const fs::path& path) { return fs::absolute(path).parent_path(); }

// Whether it is the name of an open file: /dev/fd/1, or /proc/self/fd/1, where /dev/stdout leads.
bool is_descriptor(const fs::path& path) {
  std::error_code error;
  const fs::path folder = fs::canonical(folder_of(path), error);
  return !error && folder.filename() == "fd" && folder.string().starts_with("/proc/");
}

void write_stream_of(const std::string& stream_path, const std::string& name,
                     const std::function<void(std::ostream&)>& write) {
  errno = 0;
  std::ofstream out(stream_path, std::ios::binary);
  if (!out) fail(name);
  write_checked(out, name, write);
  out.close();
  if (!out) fail(name);
}

// What is being written, in the folder of the file that it becomes.
class PartialFile {
 public:
  // `name`: what errors call the file.
  PartialFile(const fs::path& target, std::string name)
      : target_(target), name_(std::move(name)), own_path_(target.string() + fmt::format(".{}.part", getpid())) {
    open_unnamed();
    if (file_ >= 0) return;
    file_ = ::open(own_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (file_ < 0) fail(name_);
    has_name_ = true;
  }
  ~PartialFile() {
    if (has_name_) ::unlink(own_path_.c_str());
    ::close(file_);
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  // Where a stream can be opened on it.
  [[nodiscard]] std::string stream_path() const { return has_name_ ? own_path_ : link_; }

  void flush_to_disk() {
    if (::fsync(file_) != 0) fail(name_);
  }

  void move_to_target() {
    if (!has_name_) {
      ::unlink(own_path_.c_str());  // of a process that was killed between the next two calls, and had our number
      if (::linkat(AT_FDCWD, link_.c_str(), AT_FDCWD, own_path_.c_str(), AT_SYMLINK_FOLLOW) != 0) fail(name_);
      has_name_ = true;
    }
    if (::rename(own_path_.c_str(), target_.c_str()) != 0) fail(name_);
    has_name_ = false;
  }

 private:
  static constexpr mode_t mode = 0666;  // less what the user's mask takes away

  void open_unnamed() {
    file_ = ::open(folder_of(target_).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, mode);
    if (file_ < 0) return;
    link_ = fmt::format("/proc/self/fd/{}", file_);
    if (::access(link_.c_str(), W_OK) == 0) return;
    ::close(file_);
    file_ = -1;
  }

  fs::path target_;
  std::string name_;
  std::string own_path_;
  std::string link_;  // to a file without a name
  int file_ = -1;
  bool has_name_ = false;
};

// So that the name, too, is on the disk. File systems that cannot do that to a folder say EINVAL.
void flush_folder(const fs::path& path, const std::string& name) {
  const int folder = ::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) fail(name);
  const bool done = ::fsync(folder) == 0 || errno == EINVAL;
  const int reason = errno;
  ::close(folder);
  errno = reason;
  if (!done) fail(name);
}

}  // namespace

fs::path target_of_output(const std::string& path) {
  constexpr int links_max = 40;  // as Linux has it
  fs::path target = path;
  std::error_code error;
  for (int links = 0; links < links_max; ++links) {
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
  out.flush();
  if (!out) fail(name);
}

void write_output_file(const std::string& path, const std::function<void(std::ostream&)>& write, Durable durable) {
  std::error_code ignored;
  const auto status = fs::status(path, ignored);
  refuse_folder(path, status);
  if (!is_regular(status)) return write_stream_of(path, path, write);
  const fs::path target = target_of_output(path);  // so that a link stays
  PartialFile partial(target, path);
  write_stream_of(partial.stream_path(), path, write);
  if (durable == Durable::yes) partial.flush_to_disk();
  partial.move_to_target();
  if (durable == Durable::yes) flush_folder(target, path);
}

void check_output_file(const std::string& path) {
  std::error_code ignored;
  const auto status = fs::status(path, ignored);
  refuse_folder(path, status);
  errno = 0;
  const auto written = is_regular(status) ? folder_of(target_of_output(path)) : fs::path(path);
  if (::access(written.c_str(), W_OK) != 0) fail(path);
}

}  // namespace dualpipe
