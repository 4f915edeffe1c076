#include "dualpipe/sim/search/partition.h"

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/partition_report.h"
#include "dualpipe/sim/schedule/error.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct PartitionCommand {
  ScheduleOptions schedule;
  CostOptions costs;
  std::string output, json, width;
  bool layout = false;
};

// Lists and files of stages are taken for the parts of the model, too: they are what is cut.
ModelCosts model_of(const GivenCosts& given) {
  if (const auto* model = std::get_if<ModelCosts>(&given)) return *model;
  const auto entries = entries_of(given);
  if (entries.size() == 1) {
    throw InputError(
        "what is cut are the parts of a model, and there is one: give a costs file with parts, or a list for each, as "
        "--forward 1ms,2ms,2ms,…");
  }
  ModelCosts model;
  static_cast<MachineCosts&>(model) = machine_of(given);
  model.parts.assign(entries.begin(), entries.end());
  return model;
}

void run(const PartitionCommand& command) {
  const bool prints = command.json != "-" && command.output != "-";
  std::vector<NamedFile> results{{"--output", command.output, "costs"}, {"--json", command.json, "figures"}};
  if (prints) results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", command.schedule.file(), "schedule"}});
  if (!command.width.empty() && !prints) {
    throw CLI::ValidationError("--width", "what is written has no columns; leave it out");
  }
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)),
                    .bytes = command.costs.byte_units(command.schedule.memory_limit)};
  if (!command.width.empty()) {
    const auto columns = [](std::string_view text) { return parse_integer(text, 20, 100'000); };
    layout.width = static_cast<std::size_t>(value_of("--width", command.width, columns));
  }
  const ModelCosts model = model_of(command.costs.costs());
  PartitionReport report;
  const auto loaded = command.schedule.load(model, &report.remarks);
  const Program program = lower_valid(loaded, false, report.remarks);
  command.costs.check_used(used_by(program.schedule), model);
  const bool is_planned = command.schedule.file().empty() && family(command.schedule.source).is_automatic;
  const auto program_of = [&](const ModelCosts& costs) {
    return is_planned ? lower_valid(command.schedule.load(costs)) : program;
  };
  static_cast<ReportTitle&>(report) = title_of(program.schedule);
  report.placement = program.schedule.placement;
  report.with_layout = command.layout;
  report.partition = partition(program_of, model, command.schedule.limit());
  report.costs = model;
  ModelCosts cut = model;
  cut.cut = report.partition.best.cut;
  if (!command.output.empty()) write_output(command.output, [&](std::ostream& out) { write_costs(out, cut); });
  if (!command.json.empty()) write_output(command.json, [&](std::ostream& out) { write_json(out, report); });
  if (prints) return print(to_text(report, layout));
  print_notes(report.remarks);
}

}  // namespace

void add_partition(CLI::App& app) {
  auto command = std::make_shared<PartitionCommand>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& partition = *app.add_subcommand("partition", "Cuts a model's layers so that a schedule is shortest");
  add_schedule(partition, command->schedule);
  add_costs(partition, command->costs);
  partition
      .add_flag("--layout", command->layout,
                "The cut as Megatron-LM and torchtitan take it: the first part is the embedding, the last the head, "
                "the others are layers")
      ->group(results);
  partition.add_option("--output,-o", command->output, "The costs with the cut, for --costs")
      ->type_name("FILE")
      ->group(results);
  add_output(partition, "--json", command->json, "All figures")->group(results);
  partition.add_option("--width", command->width, "Columns of the text (the terminal's)")
      ->type_name("N")
      ->group(results);
  partition.footer(
      "Examples:\n"
      "  dualpipe-sim partition 1f1b -p 16 -m 64 --costs costs.json --layout\n"
      "  dualpipe-sim partition zbv -p 8 -m 24 --costs costs.json --memory-limit 40GB -o cut.json\n"
      "  dualpipe-sim partition best.json --costs costs.json");
  partition.callback([command] { run(*command); });
}

}  // namespace dualpipe
