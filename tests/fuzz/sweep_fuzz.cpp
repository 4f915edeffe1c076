// load_sweep_report() takes any bytes: it reads them, or throws InputError. What it reads can be shown; and a grid that
// is read is written as one that reads back the same.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "dualpipe/sim/report/sweep_report.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/sweep/grid.h"

namespace {

const std::string& file() {
  static const std::string path =
      (std::filesystem::temp_directory_path() / ("dualpipe_fuzz_" + std::to_string(getpid()) + ".jsonl")).string();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  std::ofstream(file(), std::ios::binary) << text;
  try {
    const dualpipe::SweepReport report = dualpipe::load_sweep_report({file()});
    if (dualpipe::to_text(report, 10).empty()) std::abort();
    for (const std::string& axis : dualpipe::sensitivity_axes(report)) {
      static_cast<void>(dualpipe::sensitivity_plot(report, axis));
    }
  } catch (const dualpipe::InputError&) {
  }
  try {
    const dualpipe::SweepGrid grid = dualpipe::grid_of_json(text, "fuzz");
    if (!(dualpipe::grid_of_json(dualpipe::to_json_line(grid), "fuzz") == grid)) std::abort();
  } catch (const dualpipe::InputError&) {
  }
  std::filesystem::remove(file());
  return 0;
}
