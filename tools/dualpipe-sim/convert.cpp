#include <iostream>
#include <memory>

#include "commands.h"
#include "options.h"
#include "output.h"
#include "sim/schedule/csv.h"
#include "sim/schedule/json.h"

namespace dualpipe {
namespace {

struct ConvertOptions {
  ScheduleOptions schedule;
  std::string to;
  std::string output = "-";
  bool lower = false;
  bool strip = false;
};

void run(const ConvertOptions& options) {
  auto loaded = options.schedule.load();
  if (options.lower) loaded = lower_valid(std::move(loaded));
  if (options.strip) loaded = schedule_of(loaded);
  write_output(options.output, [&](std::ostream& out) {
    std::visit([&](const auto& each) { options.to == "json" ? write_json(out, each) : write_csv(out, each); }, loaded);
  });
}

}  // namespace

void add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  CLI::App& convert = *app.add_subcommand("convert", "Writes a schedule as PyTorch's CSV or as JSON");
  options->schedule.add_to(convert);
  convert.add_option("--to", options->to, "csv (PyTorch's) or json")->check(CLI::IsMember({"csv", "json"}))->required();
  convert.add_option("--output,-o", options->output, "A file, or - for stdout")->capture_default_str();
  auto* lower =
      convert.add_flag("--lower", options->lower, "With sends, receives and reductions (PyTorch's compute_comms)");
  convert.add_flag("--strip", options->strip, "Without the file's communication (compute_only)")->excludes(lower);
  convert.footer(
      "Examples:\n"
      "  dualpipe-sim convert dualpipev --ranks 4 --microbatches 8 --to csv\n"
      "  dualpipe-sim convert dualpipe.csv --chains 2 --to json --output dualpipe.json\n"
      "  dualpipe-sim convert 1f1b --ranks 4 --microbatches 8 --to csv --lower");
  convert.callback([options] { run(*options); });
}

}  // namespace dualpipe
