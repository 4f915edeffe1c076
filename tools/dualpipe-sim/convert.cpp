#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct ConvertOptions {
  ScheduleOptions schedule;
  CostOptions costs;
  std::string to;
  std::string output = "-";
  bool lower = false;
  bool strip = false;
};

void run(const ConvertOptions& options) {
  if (options.strip && options.schedule.file().empty()) {
    throw CLI::ValidationError("--strip", "a schedule of the catalog has no communication; leave it out");
  }
  options.schedule.check_used(options.costs);
  const GivenCosts costs = options.costs.costs();
  std::vector<std::string> remarks;
  auto loaded = options.schedule.load(costs, &remarks);
  if (!options.schedule.memory_limit.empty()) options.schedule.check_memory(lower_valid(loaded), costs);
  if (options.lower) loaded = lower_valid(std::move(loaded), false, remarks);
  if (options.strip) loaded = schedule_of(loaded);
  if (options.to == "csv") check_csv_can_hold(schedule_of(loaded).placement);
  write_output(options.output, [&](std::ostream& out) {
    std::visit([&](const auto& each) { options.to == "json" ? write_json(out, each) : write_csv(out, each); }, loaded);
  });
  print_notes(remarks);
}

}  // namespace

void add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  CLI::App& convert = *app.add_subcommand("convert", "Writes a schedule as PyTorch's CSV or as JSON");
  add_schedule(convert, options->schedule);
  add_planned_costs(convert, options->costs);
  add_choice(convert, "--to", options->to, {"csv", "json"}, "csv: PyTorch's; json: ours")->required();
  convert.add_option("--output,-o", options->output, "A file, which may be the one that is read, or - for stdout")
      ->type_name("FILE")
      ->capture_default_str();
  auto* lower =
      convert.add_flag("--lower", options->lower,
                       "With sends, receives and reductions (PyTorch's compute_comms; only JSON keeps their batches)");
  convert.add_flag("--strip", options->strip, "Without the file's communication (compute_only)")->excludes(lower);
  convert.footer(
      "Examples:\n"
      "  dualpipe-sim convert dualpipev --ranks 4 --microbatches 8 --to csv\n"
      "  dualpipe-sim convert dualpipe.csv --chains 2 --to json --output dualpipe.json\n"
      "  dualpipe-sim convert 1f1b --ranks 4 --microbatches 8 --to csv --lower\n"
      "  dualpipe-sim convert zb-auto --ranks 4 --microbatches 8 --costs costs.json --memory-limit 40GB --to csv");
  convert.callback([options] { run(*options); });
}

}  // namespace dualpipe
