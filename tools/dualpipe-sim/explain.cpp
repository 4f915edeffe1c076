#include "dualpipe/sim/explain/explain.h"

#include <fmt/core.h>

#include <memory>
#include <optional>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/explain/what_if.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct ExplainOptions {
  ScheduleOptions schedule;
  CostOptions costs;
  std::string json, width;
  bool no_what_if = false;
};

// JSON on standard output leaves no room for people.
bool prints_text(const ExplainOptions& options) { return options.json != "-"; }

void check_files(const ExplainOptions& options) {
  std::vector<NamedFile> results{{"--json", options.json, "explanation"}};
  if (prints_text(options)) results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", options.schedule.file(), "schedule"},
                                              {"--costs", options.costs.file, "costs"}});
  if (options.width.empty() || prints_text(options)) return;
  throw CLI::ValidationError("--width", "what is written has no columns; leave it out");
}

std::size_t columns(const ExplainOptions& options) {
  if (options.width.empty()) return static_cast<std::size_t>(terminal_width(0));
  const auto count = [](std::string_view text) { return static_cast<std::size_t>(parse_integer(text, 20, 100'000)); };
  return value_of("--width", options.width, count);
}

// The report of a schedule as it is simulated.
ExplainReport report_of_plan(const ExplainOptions& options) {
  const GivenCosts given = options.costs.costs();
  const Planned plan = planned(options.schedule, options.costs, given);
  const auto& [program, costs, remarks] = plan;
  const Timeline timeline = simulate(program, costs);
  const Explanation explanation = explain(program, costs, timeline, options.schedule.limit());
  ExplainReport report = explain_report(program, costs, timeline, explanation);
  report.remarks = remarks;
  if (!options.no_what_if) {
    report.what_if = what_if({.program = program,
                              .given = given,
                              .costs = costs,
                              .explanation = explanation,
                              .shape = options.schedule.catalog_shape(),
                              .memory_limit = options.schedule.limit()});
  }
  return report;
}

void run(const ExplainOptions& options) {
  check_files(options);
  const TextLayout layout{.width = columns(options), .bytes = options.costs.byte_units()};
  const ExplainReport report = report_of_plan(options);
  if (!options.json.empty()) write_output(options.json, [&](std::ostream& out) { write_json(out, report); });
  if (!prints_text(options)) return print_notes(report.remarks);
  print(to_text(report, layout));
}

}  // namespace

void add_explain(CLI::App& app) {
  auto options = std::make_shared<ExplainOptions>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& explain = *app.add_subcommand("explain", "Why ranks are idle, the critical path, and what would help");
  add_schedule(explain, options->schedule);
  add_costs(explain, options->costs);
  add_output(explain, "--json", options->json, "All figures, every step of the path")->group(results);
  explain.add_option("--width", options->width, "Columns of the text (the terminal's)")->type_name("N")->group(results);
  explain.add_flag("--no-what-if", options->no_what_if, "Leaves out what would help: some hundred simulations")
      ->group(results);
  explain.footer(
      "Examples:\n"
      "  dualpipe-sim explain zb1p --ranks 8 --microbatches 24\n"
      "  dualpipe-sim explain 1f1b --ranks 8 --microbatches 24 --costs costs.json --json explained.json\n"
      "  dualpipe-sim explain mine.csv --comm stream --latency 20us --bandwidth 50GB/s --bytes 32MiB");
  explain.callback([options] { run(*options); });
}

}  // namespace dualpipe
