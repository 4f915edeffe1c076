// read_csv() takes any bytes: it reads them, or throws InputError. What it reads, write_csv() writes back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <variant>

#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/error.h"

namespace {

using Read = std::variant<dualpipe::Schedule, dualpipe::Program>;

std::optional<Read> read(const std::string& text, int chains) {
  try {
    std::istringstream in(text);
    return dualpipe::read_csv(in, "fuzz.csv", {.chains = chains});
  } catch (const dualpipe::InputError&) {
    return std::nullopt;
  }
}

std::string write(const Read& read) {
  std::ostringstream out;
  std::visit([&](const auto& value) { dualpipe::write_csv(out, value); }, read);
  return out.str();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  for (const int chains : {1, 2}) {
    const auto first = read(text, chains);
    if (first && read(write(*first), chains) != first) std::abort();
  }
  return 0;
}
