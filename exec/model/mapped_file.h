// A file, mapped into memory to be read. Private to exec.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace dualpipe::detail::model {

class MappedFile {
 public:
  // `content`: what the file should have in it, for the error. Throws InputError where it is no regular file, or cannot
  // be opened.
  MappedFile(const std::string& path, std::string_view content);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Aligned to a page.
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace dualpipe::detail::model
