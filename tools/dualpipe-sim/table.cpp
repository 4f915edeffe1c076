#include "dualpipe/sim/report/table.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/table_options.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct TableCommand {
  TableOptions options;
  std::string width;
  std::string format = "text";
};

std::string rendered(const TableCommand& command) {
  const TableOptions& options = command.options;
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)),
                    .bytes = options.costs.byte_units(options.memory_limit)};
  if (!command.width.empty()) {
    const auto columns = [](std::string_view number) { return parse_integer(number, 20, 100'000); };
    layout.width = static_cast<std::size_t>(value_of("--width", command.width, columns));
  }
  std::vector<std::string> remarks;
  const TableRequest request = options.request(options.costs.costs(), remarks);
  if (!command.width.empty() && (command.format == "csv" || command.format == "json")) {
    throw UsageError("--width", fmt::format("it does nothing with --format {}; leave it out", command.format));
  }
  print_notes(remarks);
  const ScheduleTable table = schedule_table(request);
  if (command.format == "markdown") return to_markdown(table, layout);
  if (command.format == "csv") return to_csv(table);
  if (command.format == "json") return to_json(table);
  return to_text(table, layout);
}

void add_choices(CLI::App& table, TableOptions& options) {
  add_list(table, "--schedules", options.schedules,
           "Names of the catalog, and CSV or JSON files (all that the shape allows)")
      ->type_name("NAMES")
      ->group("Table");
  add_choice(
      table, "--equal", options.equal, table_terms(),
      "What is equal. ranks: one model on the same ranks; stages: DeepSeek's table, which has DualPipeV on half the "
      "ranks")
      ->group("Table");
  table
      .add_option("--memory-limit", options.memory_limit, "Of a rank: which schedules fit, by the rank that needs most")
      ->type_name("BYTES")
      ->group("Table");
  add_list(table, "--recompute", options.recompute, "none, full, or none,full (both where the costs know both)")
      ->type_name("MODES")
      ->group("Table");
  table
      .add_option(
          "--seeds", options.seeds,
          "So many runs with --jitter: median, 5 % and 95 % of the makespan, and which schedule wins in how many")
      ->type_name("N")
      ->group("Table");
  table.add_option("--straggler", options.straggler, "In each of --seeds one rank, drawn anew, has this speed")
      ->type_name("X")
      ->group("Table");
  table.add_option("--tokens", options.tokens, "Of a micro-batch: tokens per second")->type_name("N")->group("Table");
  add_list(table, "--flops", options.flops, "FLOPs of a micro-batch (F and B, all stages), and peak FLOP/s of a rank")
      ->type_name("N,PEAK")
      ->group("Table");
}

void add_layout(CLI::App& table, TableCommand& command) {
  add_choice(table, "--sort", command.options.sort, table_sorts(),
             "What comes first is least in this. none: as named (makespan; none for equal stages)")
      ->group("Table");
  add_choice(table, "--format", command.format, {"text", "markdown", "csv", "json"}, "How the table is written")
      ->group("Table");
  table
      .add_option("--width", command.width, "Columns of the text, which leaves out what matters least (the terminal's)")
      ->type_name("N")
      ->group("Table");
}

}  // namespace

void add_table(CLI::App& app) {
  auto command = std::make_shared<TableCommand>();
  TableOptions& options = command->options;
  options.equal = "ranks";
  options.standard_input = &std::cin;
  CLI::App& table = *app.add_subcommand("table", "Compares schedules: time, idle time by its cause, memory");
  add_list(table, "--ranks,-p", options.ranks,
           "Pipeline ranks, P; of equal stages, stages; several: a row for each (8)")
      ->type_name("N")
      ->group("Shape");
  add_list(table, "--microbatches,-m", options.micro_batches,
           "Micro-batches, M, over all chains; several: a row for each (20)")
      ->type_name("N")
      ->group("Shape");
  add_parameters(table, options.shape);
  add_costs(table, options.costs);
  add_choices(table, options);
  add_layout(table, *command);
  table.footer(
      "Of equal ranks, durations and bytes are of the model: one value is each rank's\n"
      "share, a list its parts in order, of which each schedule makes its stages.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-sim table -p 16 -m 64 --costs costs.json --memory-limit 40GB\n"
      "  dualpipe-sim table -p 16 -m 32,64,128 -f 18.5ms -b 27.4ms -w 9.3ms\n"
      "  dualpipe-sim table --schedules 1f1b,zb1p,mine.csv --format markdown\n"
      "  dualpipe-sim table --equal stages");
  table.callback([command] {
    const std::string text = rendered(*command);
    if (command->format == "text") return print(text);
    write_output("-", [&](std::ostream& out) { out << text; });
  });
}

}  // namespace dualpipe
