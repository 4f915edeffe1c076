// read_costs() takes any bytes: it reads them, or throws InputError. What it reads, write_costs() writes back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/schedule/error.h"

namespace {

std::optional<dualpipe::GivenCosts> read(const std::string& text) {
  try {
    std::istringstream in(text);
    return dualpipe::read_costs(in, "fuzz.json");
  } catch (const dualpipe::InputError&) {
    return std::nullopt;
  }
}

std::string write(const dualpipe::GivenCosts& costs) {
  std::ostringstream out;
  dualpipe::write_costs(out, costs);
  return out.str();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  const auto first = read(text);
  if (first && read(write(*first)) != first) std::abort();
  return 0;
}
