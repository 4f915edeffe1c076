// load_foreign_traces() takes any bytes, with an order that ran or without: it reads them, or throws InputError. A run
// that is a whole step is explained, and its idle time adds up.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/trace/foreign.h"
#include "dualpipe/sim/trace/measured_run.h"

namespace {

// The readers read a file more than once.
const std::string& file() {
  static const std::string path =
      (std::filesystem::temp_directory_path() / ("dualpipe_fuzz_" + std::to_string(getpid()) + "_rank0.json")).string();
  return path;
}

void check(const dualpipe::ForeignRun& run) {
  const auto measured = dualpipe::measured_run(run.run, "fuzz", run.program);
  const auto explanation = dualpipe::explain_measured(measured.program, measured.timeline);
  dualpipe::Time left = 0;
  for (int rank = 0; rank < measured.program.schedule.ranks(); ++rank) left += measured.timeline.idle(rank);
  for (const auto& each : explanation.segments) left -= each.span.end - each.span.start;
  if (left != 0) std::abort();
  static_cast<void>(dualpipe::measured_costs(measured.program, measured.timeline));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::ofstream(file(), std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  const std::vector<std::string> files{file()};
  static const dualpipe::Schedule order = dualpipe::generate("1f1b", {1, 2});
  for (const auto format :
       {dualpipe::TraceFormat::kineto, dualpipe::TraceFormat::primus, dualpipe::TraceFormat::pytorch}) {
    for (const auto* const schedule : {static_cast<const dualpipe::Schedule*>(nullptr), &order}) {
      try {
        check(dualpipe::load_foreign_traces(files, format, {.schedule = schedule}));
      } catch (const dualpipe::InputError&) {
      }
    }
  }
  try {
    static_cast<void>(dualpipe::format_of_trace(file()));
  } catch (const dualpipe::InputError&) {
  }
  std::filesystem::remove(file());
  return 0;
}
