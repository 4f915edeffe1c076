#include "dualpipe/sim/schedule/schedule_file.h"

#include <fmt/format.h>

#include <istream>
#include <streambuf>
#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/json.h"

namespace dualpipe {
namespace {

// What was already taken from a stream, and then the rest of it.
class ReadAhead : public std::streambuf {
 public:
  ReadAhead(std::string taken, std::streambuf& rest) : block_(std::move(taken)), rest_(rest) { show_block(); }

 protected:
  int_type underflow() override {
    constexpr std::size_t block_size = std::size_t{1} << 16U;
    block_.resize(block_size);
    block_.resize(static_cast<std::size_t>(rest_.sgetn(block_.data(), block_size)));
    show_block();
    return block_.empty() ? traits_type::eof() : traits_type::to_int_type(block_[0]);
  }

 private:
  void show_block() { setg(block_.data(), block_.data(), block_.data() + block_.size()); }

  std::string block_;
  std::streambuf& rest_;
};

// Blanks before the first character count in the places that errors name, so the parsers get them, too.
std::string take_blanks(std::istream& in) {
  constexpr std::size_t blanks_max = 4096;
  constexpr std::string_view blanks = " \t\r\n\xef\xbb\xbf";  // and a byte order mark
  std::string taken;
  while (taken.size() < blanks_max && in.peek() != std::char_traits<char>::eof() &&
         blanks.find(static_cast<char>(in.peek())) != std::string_view::npos) {
    taken += static_cast<char>(in.get());
  }
  return taken;
}

}  // namespace

std::variant<Schedule, Program> read_schedule(std::istream& in, const std::string& source,
                                              const ScheduleFileOptions& options) {
  std::string taken = take_blanks(in);
  const bool is_json = in.peek() == '{';
  if (is_json && options.letters) {
    throw InputError(
        fmt::format("{}: a JSON file has the current letters; which they are (--letters) is for CSV files", source));
  }
  if (is_json && options.chains) {
    throw InputError(fmt::format(
        "{}: a JSON file says itself which chains it has; the number of chains (--chains) is for CSV files", source));
  }
  const auto read = [&](std::istream& from) -> std::variant<Schedule, Program> {
    if (is_json) return read_json(from, source);
    return read_csv(from, source,
                    {options.chains.value_or(1), options.letters.value_or(Letters::by_content), options.remarks});
  };
  if (taken.empty()) return read(in);
  ReadAhead buffer(std::move(taken), *in.rdbuf());
  std::istream whole(&buffer);
  return read(whole);
}

std::variant<Schedule, Program> load_schedule(const std::string& path, const ScheduleFileOptions& options) {
  auto in = open_input_file(path);
  return read_schedule(in, path, options);
}

}  // namespace dualpipe
