#include "dualpipe/sim/report/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iostream>
#include <memory>

#include "commands.h"
#include "dualpipe/sim/generate/catalog.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

std::vector<std::string> first_table() {
  std::vector<std::string> names;
  for (const Family& family : catalog()) {
    if (family.is_in_first_table) names.emplace_back(family.name);
  }
  return names;
}

struct TableOptions {
  ShapeOptions shape;
  CostOptions costs;
  std::vector<std::string> schedules = first_table();
  std::string equal = "stages";
  std::string format = "text";
};

constexpr Shape default_shape{8, 20, 2};  // DeepSeek's README

std::string rendered(const TableOptions& options) {
  const EqualTerms terms = options.equal == "stages" ? EqualTerms::stages : EqualTerms::ranks;
  const ScheduleTable table =
      schedule_table(options.schedules, options.shape.shape(default_shape), terms, options.costs.costs());
  if (options.format == "markdown") return to_markdown(table);
  if (options.format == "csv") return to_csv(table);
  if (options.format == "json") return to_json(table);
  return to_text(table);
}

}  // namespace

void add_table(CLI::App& app) {
  auto options = std::make_shared<TableOptions>();
  CLI::App& table = *app.add_subcommand("table", "Compares schedules: bubble by formula and by simulation, memory");
  options->shape.add_to(table, "Stages of the model, on as many ranks for one stage per rank (8)");
  options->costs.add_to(table);
  add_list(table, "--schedules", options->schedules,
           fmt::format("Which ones, and in which order ({})", fmt::join(options->schedules, ",")))
      ->type_name("NAMES")
      ->group("Table");
  table
      .add_option("--equal", options->equal,
                  "What is equal when schedules differ in stages per rank: stages (DualPipeV on half the ranks, as in "
                  "DeepSeek's table) or ranks")
      ->check(CLI::IsMember({"stages", "ranks"}))
      ->group("Table")
      ->capture_default_str();
  table.add_option("--format", options->format, "text, markdown, csv or json")
      ->check(CLI::IsMember({"text", "markdown", "csv", "json"}))
      ->group("Table")
      ->capture_default_str();
  table.footer(
      "Examples:\n"
      "  dualpipe-sim table\n"
      "  dualpipe-sim table --ranks 16 --microbatches 64 --forward 18.5ms --backward 27.4ms --weight 9.3ms\n"
      "  dualpipe-sim table --schedules 1f1b,interleaved,zb1p,zb-h2 --chunks 2 --equal ranks --format markdown");
  table.callback([options] {
    const std::string text = rendered(*options);
    write_output("-", [&](std::ostream& out) { out << text; });
  });
}

}  // namespace dualpipe
