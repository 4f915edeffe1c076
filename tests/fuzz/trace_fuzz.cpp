// read_chrome_trace() takes any bytes: it reads them, or throws InputError. A run that it reads does not differ from
// itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "dualpipe/sim/report/compare.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/trace/run_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::istringstream in(std::string(data, data + size));
  try {
    for (const dualpipe::TraceRun& run : dualpipe::read_chrome_trace(in, "fuzz.json")) {
      const dualpipe::NamedRun named{"fuzz.json", run};
      const auto comparison = dualpipe::compare(named, named);
      if (comparison.difference.starts.largest != 0) std::abort();
      dualpipe::Time idle = 0;
      for (const auto& rank : comparison.difference.per_rank) {
        if (rank.causes.planned) idle += rank.idle.planned - rank.causes.planned->total();
      }
      if (idle != 0) std::abort();
      if (to_text(comparison).empty()) std::abort();
    }
  } catch (const dualpipe::InputError&) {
  }
  return 0;
}
