#include "dualpipe/sim/trace/byte_input.h"

#include <fmt/format.h>
#include <zlib.h>

#include <array>
#include <cstdint>
#include <istream>
#include <new>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::trace {
namespace {

constexpr char magic_first = '\x1f';
constexpr char magic_second = '\x8b';

// Traces shrink to a tenth, or a thirtieth where they repeat themselves; a file that is made to keep us busy grows a
// thousandfold. What is small is let pass, whatever its ratio.
constexpr std::uint64_t ratio_max = 200;
constexpr std::uint64_t ratio_matters_from = std::uint64_t{1} << 26U;  // bytes, expanded

std::size_t read_block(std::istream& in, const std::string& source, char* to, std::size_t size) {
  if (!in.good()) return 0;
  in.read(to, static_cast<std::streamsize>(size));
  if (in.bad()) throw InputError(fmt::format("{}: cannot be read", source));
  return static_cast<std::size_t>(in.gcount());
}

}  // namespace

// One member of a gzip file after another, as RFC 1952 allows.
class ByteInput::Gzip {
 public:
  // `first`: what was taken from the stream already.
  Gzip(std::istream& in, const std::string& source, std::string_view first) : in_(in), source_(source) {
    constexpr int gzip_window_bits = 15 + 16;  // zlib's way to say: the largest window, and gzip's header
    if (inflateInit2(&stream_, gzip_window_bits) != Z_OK) throw std::bad_alloc();
    first.copy(block_.data(), first.size());
    show(first.size());
  }
  ~Gzip() { inflateEnd(&stream_); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  [[nodiscard]] std::size_t read(char* to, std::size_t size) {
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = static_cast<uInt>(size);
    while (stream_.avail_out == size && has_more()) inflate_some();
    const std::size_t count = size - stream_.avail_out;
    expanded_ += count;
    if (expanded_ > ratio_matters_from && expanded_ / ratio_max > compressed_) {
      fail(fmt::format("expands to more than {} times its size, which no trace does", ratio_max));
    }
    return count;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw InputError(fmt::format("{}: the compressed file {}", source_, what));
  }

  void show(std::size_t size) {
    compressed_ += size;
    stream_.next_in = reinterpret_cast<Bytef*>(block_.data());
    stream_.avail_in = static_cast<uInt>(size);
  }

  // False at the end of the file, which must be the end of a member.
  [[nodiscard]] bool has_more() {
    if (stream_.avail_in == 0) show(read_block(in_, source_, block_.data(), block_.size()));
    if (stream_.avail_in > 0) return true;
    if (!between_members_) fail("ends in the middle; was it cut off?");
    return false;
  }

  void inflate_some() {
    between_members_ = false;
    const int status = inflate(&stream_, Z_NO_FLUSH);
    if (status == Z_STREAM_END) {
      between_members_ = true;
      inflateReset(&stream_);
    } else if (status == Z_MEM_ERROR) {
      throw std::bad_alloc();
    } else if (status != Z_OK) {
      fail(fmt::format("is damaged: {}", stream_.msg != nullptr ? stream_.msg : "it makes no sense"));
    }
  }

  std::istream& in_;
  const std::string& source_;
  z_stream stream_{};
  std::array<char, std::size_t{1} << 16U> block_{};
  std::uint64_t compressed_ = 0;  // bytes so far
  std::uint64_t expanded_ = 0;
  bool between_members_ = false;
};

ByteInput::ByteInput(std::istream& in, const std::string& source) : in_(in), source_(source) {
  if (in.peek() != std::char_traits<char>::to_int_type(magic_first)) return;
  std::array<char, 2> first{};
  const std::size_t count = read_block(in, source, first.data(), first.size());
  // No text starts with the first of the two bytes either.
  if (count < 2 || first[1] != magic_second) throw InputError(fmt::format("{}: neither JSON nor a gzip file", source));
  gzip_ = std::make_unique<Gzip>(in, source, std::string_view(first.data(), first.size()));
}
ByteInput::~ByteInput() = default;

std::size_t ByteInput::read(char* to, std::size_t size) {
  return gzip_ ? gzip_->read(to, size) : read_block(in_, source_, to, size);
}

}  // namespace dualpipe::detail::trace
