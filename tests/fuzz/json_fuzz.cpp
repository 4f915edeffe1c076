// read_json() takes any bytes: it reads them, or throws InputError. What it reads, write_json() writes back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <variant>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json.h"

namespace {

using Read = std::variant<dualpipe::Schedule, dualpipe::Program>;

std::optional<Read> read(const std::string& text) {
  try {
    std::istringstream in(text);
    return dualpipe::read_json(in, "fuzz.json");
  } catch (const dualpipe::InputError&) {
    return std::nullopt;
  }
}

std::string write(const Read& read) {
  std::ostringstream out;
  std::visit([&](const auto& value) { dualpipe::write_json(out, value); }, read);
  return out.str();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  const auto first = read(text);
  if (first && read(write(*first)) != first) std::abort();
  return 0;
}
