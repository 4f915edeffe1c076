#include "dualpipe/sim/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <memory>
#include <utility>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/schedule_file.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct TableOptions {
  ShapeOptions shape;
  std::vector<std::string> ranks, micro_batches;
  CostOptions costs;
  std::vector<std::string> schedules, recompute, flops;
  std::string memory_limit, tokens, seeds, width;
  std::string equal = "ranks";
  std::string sort;
  std::string format = "text";
};

constexpr Shape default_shape{8, 20, default_chunks};  // DeepSeek's README

constexpr std::array sorts{std::pair{"makespan", TableSort::makespan}, std::pair{"bubble", TableSort::bubble},
                           std::pair{"memory", TableSort::memory}, std::pair{"none", TableSort::none}};

TableSchedule schedule_of_table(const std::string& name) {
  ScheduleOptions options;
  options.source = name;
  if (options.file().empty()) return {name, std::nullopt};
  std::vector<std::string> remarks;
  auto loaded = options.load({}, &remarks);
  Program program = lower_valid(std::move(loaded), false, remarks);
  print_notes(remarks);
  return {name, std::move(program)};
}

double positive(std::string_view option, const std::string& text) {
  return value_of(option, text, [](std::string_view number) {
    const double value = parse_real(number);
    if (value <= 0) throw InputError("it must be more than 0");
    return value;
  });
}

template <typename Number>
void read_counts(std::string_view option, const std::vector<std::string>& texts, std::int64_t most,
                 std::vector<Number>& counts) {
  if (texts.empty()) return;
  counts.clear();
  for (const std::string& text : texts) {
    const auto whole = [&](std::string_view number) { return parse_integer(number, 1, most); };
    counts.push_back(static_cast<Number>(value_of(option, text, whole)));
  }
}

TableRequest request_of(const TableOptions& options) {
  TableRequest request;
  for (const std::string& name : options.schedules) request.schedules.push_back(schedule_of_table(name));
  request.terms = options.equal == "stages" ? EqualTerms::stages : EqualTerms::ranks;
  request.ranks = {default_shape.ranks};
  request.micro_batches = {default_shape.micro_batches};
  read_counts("--ranks", options.ranks, stage_count_max, request.ranks);
  read_counts("--microbatches", options.micro_batches, std::numeric_limits<std::int64_t>::max(), request.micro_batches);
  request.parameters = options.shape.shape(default_shape);
  request.costs = options.costs.costs();
  if (!options.memory_limit.empty()) {
    request.memory_limit = value_of("--memory-limit", options.memory_limit, parse_bytes);
  }
  for (const std::string& each : options.recompute) {
    if (each != "none" && each != "full") {
      throw InputError(fmt::format("--recompute: '{}' is neither none nor full", each));
    }
    request.recompute.push_back(each == "full" ? Recomputation::full : Recomputation::none);
  }
  if (!options.seeds.empty()) {
    constexpr int seeds_max = 1'000'000;
    const auto count = [&](std::string_view text) { return static_cast<int>(parse_integer(text, 1, seeds_max)); };
    request.seeds = value_of("--seeds", options.seeds, count);
  }
  if (!options.tokens.empty()) request.tokens = positive("--tokens", options.tokens);
  if (!options.flops.empty()) {
    if (options.flops.size() != 2) {
      throw InputError("--flops takes two numbers: the FLOPs of a micro-batch, and the peak FLOP/s of a rank");
    }
    request.flops = positive("--flops", options.flops[0]);
    request.peak_flops = positive("--flops", options.flops[1]);
  }
  // DeepSeek's table has an order of its own.
  if (request.terms == EqualTerms::stages) request.sort = TableSort::none;
  const auto* const sort = std::ranges::find(sorts, options.sort, &decltype(sorts)::value_type::first);
  if (sort != sorts.end()) request.sort = sort->second;
  return request;
}

// What none of the schedules has a use for.
void check_used(const TableOptions& options, const TableRequest& request) {
  std::vector<std::string> families;
  for (const TableSchedule& each : request.schedules) {
    if (!each.program) families.push_back(each.name);
  }
  if (request.schedules.empty()) families = default_schedules(request.terms);
  Used used = used_by(families);
  for (const TableSchedule& each : request.schedules) {
    if (each.program) used.add(used_by(each.program->schedule));
  }
  used.reduces = false;  // when reductions end stands in no table
  options.shape.check_used(families);
  options.costs.check_used(used, request.costs);
  if (request.seeds > 0 && machine_of(request.costs).jitter == 0) {
    throw CLI::ValidationError("--seeds", "nothing is drawn; add --jitter");
  }
  if (!options.width.empty() && (options.format == "csv" || options.format == "json")) {
    throw CLI::ValidationError("--width",
                               fmt::format("it does nothing with --format {}; leave it out", options.format));
  }
}

std::string rendered(const TableOptions& options) {
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)),
                    .bytes = options.costs.byte_units(options.memory_limit)};
  if (!options.width.empty()) {
    const auto columns = [](std::string_view number) { return parse_integer(number, 20, 100'000); };
    layout.width = static_cast<std::size_t>(value_of("--width", options.width, columns));
  }
  const TableRequest request = request_of(options);
  check_used(options, request);
  const ScheduleTable table = schedule_table(request);
  if (options.format == "markdown") return to_markdown(table, layout);
  if (options.format == "csv") return to_csv(table);
  if (options.format == "json") return to_json(table);
  return to_text(table, layout);
}

void add_choices(CLI::App& table, TableOptions& options) {
  add_list(table, "--schedules", options.schedules,
           "Names of the catalog, and CSV or JSON files (all that the shape allows)")
      ->type_name("NAMES")
      ->group("Table");
  add_choice(
      table, "--equal", options.equal, {"ranks", "stages"},
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
  table.add_option("--seeds", options.seeds, "So many runs with --jitter: median, 5 % and 95 % of the makespan")
      ->type_name("N")
      ->group("Table");
  table.add_option("--tokens", options.tokens, "Of a micro-batch: tokens per second")->type_name("N")->group("Table");
  add_list(table, "--flops", options.flops, "FLOPs of a micro-batch (F and B, all stages), and peak FLOP/s of a rank")
      ->type_name("N,PEAK")
      ->group("Table");
}

void add_layout(CLI::App& table, TableOptions& options) {
  add_choice(table, "--sort", options.sort, {"makespan", "bubble", "memory", "none"},
             "What comes first is least in this. none: as named (makespan; none for equal stages)")
      ->group("Table");
  add_choice(table, "--format", options.format, {"text", "markdown", "csv", "json"}, "How the table is written")
      ->group("Table");
  table
      .add_option("--width", options.width, "Columns of the text, which leaves out what matters least (the terminal's)")
      ->type_name("N")
      ->group("Table");
}

}  // namespace

void add_table(CLI::App& app) {
  auto options = std::make_shared<TableOptions>();
  CLI::App& table = *app.add_subcommand("table", "Compares schedules: time, idle time by its cause, memory");
  add_list(table, "--ranks,-p", options->ranks,
           "Pipeline ranks, P; of equal stages, stages; several: a row for each (8)")
      ->type_name("N")
      ->group("Shape");
  add_list(table, "--microbatches,-m", options->micro_batches,
           "Micro-batches, M, over all chains; several: a row for each (20)")
      ->type_name("N")
      ->group("Shape");
  options->shape.add_parameters_to(table);
  options->costs.add_to(table);
  add_choices(table, *options);
  add_layout(table, *options);
  table.footer(
      "Of equal ranks, durations and bytes are of the model: one value is each rank's\n"
      "share, a list its parts in order, of which each schedule makes its stages.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-sim table -p 16 -m 64 --costs costs.json --memory-limit 40GB\n"
      "  dualpipe-sim table -p 16 -m 32,64,128 -f 18.5ms -b 27.4ms -w 9.3ms\n"
      "  dualpipe-sim table --schedules 1f1b,zb1p,mine.csv --format markdown\n"
      "  dualpipe-sim table --equal stages");
  table.callback([options] {
    const std::string text = rendered(*options);
    if (options->format == "text") return print(text);
    write_output("-", [&](std::ostream& out) { out << text; });
  });
}

}  // namespace dualpipe
