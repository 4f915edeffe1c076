#include "dualpipe/sim/simulate/simulate.h"

#include <memory>
#include <string>
#include <vector>

#include "charts.h"
#include "commands.h"
#include "dualpipe/sim/report/run_report.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct SimulateOptions {
  ScheduleOptions schedule;
  CostOptions costs;
  ChartOptions charts;
  std::string json, csv;
};

// What is printed for people when nothing else claims standard output.
bool prints_summary(const SimulateOptions& options) {
  return !options.charts.takes_output() && options.json != "-" && options.csv != "-";
}

// The summary goes to standard output, too, below a Gantt chart where there is one.
void check_files(const SimulateOptions& options) {
  std::vector<NamedFile> results;
  options.charts.add_results_to(results);
  results.push_back({"--json", options.json, "figures"});
  results.push_back({"--csv", options.csv, "rows"});
  if (prints_summary(options) && options.charts.gantt != "-") results.push_back({"standard output", "-", "summary"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", options.schedule.file(), "schedule"},
                                              {"--costs", options.costs.file, "costs"}});
}

void run(const SimulateOptions& options) {
  options.charts.check_usage(prints_summary(options));
  check_files(options);
  const ChartOptions::Parsed charts = options.charts.parsed();
  const Planned plan = planned(options.schedule, options.costs, options.costs.costs());
  const auto& [program, costs, remarks] = plan;
  const Timeline timeline = simulate(program, costs, options.charts.needs_messages() ? Record::spans : Record::ops);
  RunReport report = run_report(program, costs, timeline);
  report.remarks = remarks;
  write_charts(options.charts, charts, {.program = program, .costs = costs, .timeline = timeline});
  if (!options.json.empty()) write_output(options.json, [&](std::ostream& out) { write_json(out, report); });
  if (!options.csv.empty()) write_output(options.csv, [&](std::ostream& out) { out << to_csv(report); });
  if (!prints_summary(options)) return print_notes(remarks);
  const TextLayout layout{.width = static_cast<std::size_t>(options.charts.columns(0)),
                          .bytes = options.costs.byte_units()};
  print((options.charts.gantt == "-" ? "\n" : "") + to_text(report, layout));
}

}  // namespace

void add_simulate(CLI::App& app) {
  auto options = std::make_shared<SimulateOptions>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& simulate = *app.add_subcommand("simulate", "Runs one schedule: per-rank figures, Gantt charts, a trace");
  add_schedule(simulate, options->schedule);
  add_costs(simulate, options->costs);
  options->charts.add_files_to(simulate, results);
  add_output(simulate, "--json", options->json, "All figures")->group(results);
  add_output(simulate, "--csv", options->csv, "A row per rank")->group(results);
  options->charts.add_choices_to(simulate, results);
  simulate.footer(
      "Examples:\n"
      "  dualpipe-sim simulate 1f1b --ranks 4 --microbatches 8 --gantt -\n"
      "  dualpipe-sim simulate 1f1b --ranks 4 --microbatches 64 --gantt - --window 0 30ms\n"
      "  dualpipe-sim simulate dualpipe --ranks 8 --microbatches 20 --overlapped 2.5ms --trace out.json --svg out.svg\n"
      "  dualpipe-sim simulate pytorch.csv --comm stream --latency 20us --bandwidth 50GB/s --bytes 32MiB --json -\n"
      "  dualpipe-sim simulate dualpipe.csv --chains 2\n"
      "  dualpipe-sim simulate zb-auto --ranks 8 --microbatches 24 --latency 50us --memory-limit 8microbatches");
  simulate.callback([options] { run(*options); });
}

}  // namespace dualpipe
