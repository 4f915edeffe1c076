#include <fmt/core.h>

#include <memory>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "tools/common/output.h"
#include "trace_files.h"

namespace dualpipe {
namespace {

struct CalibrateOptions {
  TraceOptions traces;
  std::string output = "-";
};

void run(const CalibrateOptions& options) {
  std::vector<NamedFile> read;
  for (const std::string& file : options.traces.files) read.push_back({"TRACE", file, "trace"});
  read.push_back({"--schedule", options.traces.schedule, "schedule"});
  check_apart(std::vector<NamedFile>{{"--output", options.output, "costs"}}, read);
  auto loaded = options.traces.load();
  const MeasuredCosts measured = measured_costs(loaded.measured.program, loaded.measured.timeline, loaded.messages);
  write_output(options.output, [&](std::ostream& out) { write_costs(out, measured.costs); });
  loaded.remarks.insert(loaded.remarks.end(), measured.remarks.begin(), measured.remarks.end());
  print_notes(loaded.remarks);
}

}  // namespace

void add_calibrate(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App& calibrate = *app.add_subcommand("calibrate", "Costs from traces of a real run, for all that takes --costs");
  calibrate.add_option("TRACE", options->traces.files, "Of torch.profiler, one per rank, or of another tool")
      ->required()
      ->type_name("FILE");
  calibrate.add_option("--output,-o", options->output, "The costs file, or - for stdout")
      ->default_str("-")
      ->type_name("FILE")
      ->group("Results");
  options->traces.add_to(calibrate);
  calibrate.add_option("--chunks,-v", options->traces.chunks, "Stages per rank, of Primus' files (1)")
      ->type_name("N")
      ->group("Traces");
  calibrate.footer(
      "Of each stage the median of each pass; of the machine the median overhead between two ops, and the median time "
      "of a message.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-sim calibrate rank0.json.gz rank1.json.gz -o costs.json\n"
      "  dualpipe-sim calibrate pp_rank_*.json -o costs.json\n"
      "  dualpipe-sim table --costs costs.json -p 8 -m 16");
  calibrate.callback([options] { run(*options); });
}

}  // namespace dualpipe
