// The bytes of a trace file, which may be compressed with gzip: as viewers and profilers write traces. Private to
// sim/trace.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <memory>
#include <string>

namespace dualpipe::detail::trace {

class ByteInput {
 public:
  // Looks at the first two bytes, not at the name, to see whether the stream is compressed. `in` and `source`, by which
  // errors call it, must outlive this object.
  ByteInput(std::istream& in, const std::string& source);
  ~ByteInput();
  ByteInput(const ByteInput&) = delete;
  ByteInput& operator=(const ByteInput&) = delete;

  // Fills `to` with the next bytes, at most `size`; returns how many, and 0 only at the end. Throws InputError where
  // the stream fails, or the compressed data are damaged, end early, or expand without bound.
  [[nodiscard]] std::size_t read(char* to, std::size_t size);

 private:
  class Gzip;

  std::istream& in_;
  const std::string& source_;
  std::unique_ptr<Gzip> gzip_;  // null where the stream is plain text
};

}  // namespace dualpipe::detail::trace
