#include "dualpipe/sim/explain/explain.h"

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "charts.h"
#include "commands.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/explain/what_if.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tools/common/options.h"
#include "tools/common/output.h"
#include "trace_files.h"

namespace dualpipe {
namespace {

struct ExplainOptions {
  ScheduleOptions schedule;
  TraceOptions traces;  // besides the first, which stands in `schedule`
  CostOptions costs;
  ChartOptions charts;
  std::string json;
  bool no_what_if = false;
};

// Whatever else is on standard output leaves no room for people.
bool prints_text(const ExplainOptions& options) { return options.json != "-" && !options.charts.takes_output(); }

void check_files(const ExplainOptions& options) {
  std::vector<NamedFile> results{{"--json", options.json, "explanation"}};
  options.charts.add_results_to(results);
  if (prints_text(options) && options.charts.gantt != "-") results.push_back({"standard output", "-", "text"});
  std::vector<NamedFile> read{{"SCHEDULE", options.schedule.file(), "schedule"},
                              {"--costs", options.costs.file, "costs"},
                              {"--schedule", options.traces.schedule, "schedule"}};
  for (const std::string& file : options.traces.files) read.push_back({"TRACE", file, "trace"});
  check_apart(results, read);
}

// A run, and why it is as it is.
struct Explained {
  Program program;
  Costs costs;  // of a trace, its medians
  Timeline timeline;
  Explanation explanation;
  ExplainReport report;
};

// A schedule as it is simulated.
Explained explained_plan(const ExplainOptions& options) {
  const GivenCosts given = options.costs.costs();
  Planned plan = planned(options.schedule, options.costs, given);
  Explained result{std::move(plan.program), std::move(plan.costs), {}, {}, {}};
  auto& [program, costs, timeline, explanation, report] = result;
  timeline = simulate(program, costs);
  explanation = explain(program, costs, timeline, options.schedule.limit());
  report = explain_report(program, costs, timeline, explanation);
  report.remarks = std::move(plan.remarks);
  if (!options.no_what_if) {
    report.what_if = what_if({.program = program,
                              .given = given,
                              .costs = costs,
                              .explanation = explanation,
                              .shape = options.schedule.catalog_shape(),
                              .memory_limit = options.schedule.limit()});
  }
  return result;
}

// What a trace has in it, no option can say.
void check_trace_usage(const CLI::App& app, const ExplainOptions& options, bool has_traces) {
  if (!has_traces) {
    if (const std::string option = options.traces.given(); !option.empty()) {
      throw CLI::ValidationError(option, "it is for traces; leave it out with a schedule");
    }
    if (!options.traces.files.empty()) {
      throw CLI::ValidationError(options.traces.files[0], "one schedule is explained; several files are of a trace");
    }
    return;
  }
  for (const CLI::Option* option : app.get_options()) {
    const std::string group = option->get_group();
    const std::string name = option->get_name();
    const bool is_used =
        option->get_positional() || group == "Traces" || group.starts_with("Results") || name == "--chunks";
    if (option->count() == 0 || is_used) continue;
    throw CLI::ValidationError(name, "it does nothing with traces; it is for schedules, which are simulated");
  }
}

// A run from its traces. What would help is simulated with the costs that they have.
Explained explained_traces(const ExplainOptions& options) {
  TraceOptions traces = options.traces;
  traces.files.insert(traces.files.begin(), options.schedule.source);
  traces.chunks = chunks_given(options.schedule.shape);
  auto loaded = traces.load();
  Explained result{std::move(loaded.measured.program), {}, std::move(loaded.measured.timeline), {}, {}};
  auto& [program, costs, timeline, explanation, report] = result;
  explanation = explain_measured(program, timeline);
  report = explain_report(program, std::nullopt, timeline, explanation);
  report.remarks = std::move(loaded.remarks);
  report.clock_width = loaded.clock_width;
  report.ops = reported_ops(program, timeline);
  MeasuredCosts measured = measured_costs(program, timeline, loaded.messages);
  costs = std::move(measured.costs);
  if (options.no_what_if) return result;
  const Timeline planned = simulate(program, costs);
  const Explanation of_plan = explain(program, costs, planned);
  report.remarks.insert(report.remarks.end(), measured.remarks.begin(), measured.remarks.end());
  report.remarks.push_back(fmt::format(
      "what if: simulated with the run's own medians, by which it takes {}, {} of what "
      "was measured",
      format_time(planned.makespan()),
      format_rate(static_cast<double>(planned.makespan()) / static_cast<double>(std::max<Time>(report.makespan, 1)))));
  const GivenCosts given = costs;
  report.what_if = what_if({.program = program, .given = given, .costs = costs, .explanation = of_plan});
  return result;
}

void run(const CLI::App& app, const ExplainOptions& options) {
  const bool has_traces = options.schedule.source != "-" && is_trace_file(options.schedule.file());
  check_trace_usage(app, options, has_traces);
  options.charts.check_usage(prints_text(options));
  check_files(options);
  const ChartOptions::Parsed charts = options.charts.parsed();
  const Explained run = has_traces ? explained_traces(options) : explained_plan(options);
  const ExplainReport& report = run.report;
  write_charts(options.charts, charts,
               {.program = run.program,
                .costs = run.costs,
                .timeline = run.timeline,
                .explanation = &run.explanation,
                .has_messages = !run.timeline.communication.empty() || run.program.communication.empty()});
  if (!options.json.empty()) write_output(options.json, [&](std::ostream& out) { write_json(out, report); });
  if (!prints_text(options)) return print_notes(report.remarks);
  const TextLayout layout{.width = static_cast<std::size_t>(options.charts.columns(80)),
                          .bytes = options.costs.byte_units()};
  print((options.charts.gantt == "-" ? "\n" : "") + to_text(report, layout));
}

}  // namespace

void add_explain(CLI::App& app) {
  auto options = std::make_shared<ExplainOptions>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& explain = *app.add_subcommand("explain", "Why ranks are idle, the critical path, and what would help");
  add_schedule(explain, options->schedule);
  explain.get_option("SCHEDULE")
      ->description(
          "A schedule: a name of the catalog, or a CSV or JSON file, - reads one; or a trace of a run, of ours or of "
          "another tool");
  explain.add_option("TRACE", options->traces.files, "The run's other traces, where there is one for each rank")
      ->type_name("FILE");
  options->traces.add_to(explain);
  add_costs(explain, options->costs);
  add_output(explain, "--json", options->json, "All figures, every step of the path")->group(results);
  options->charts.add_files_to(explain, results);
  options->charts.add_choices_to(explain, results);
  explain.add_flag("--no-what-if", options->no_what_if, "Leaves out what would help: some hundred simulations")
      ->group(results);
  explain.footer(
      "Examples:\n"
      "  dualpipe-sim explain zb1p --ranks 8 --microbatches 24\n"
      "  dualpipe-sim explain 1f1b --ranks 8 --microbatches 24 --costs costs.json --json explained.json\n"
      "  dualpipe-sim explain mine.csv --comm stream --latency 20us --bandwidth 50GB/s --bytes 32MiB\n"
      "  dualpipe-sim explain zb1p --ranks 8 --microbatches 24 --svg why.svg --trace why.json\n"
      "  dualpipe-sim explain run.json --gantt -\n"
      "  dualpipe-sim explain rank0.json.gz rank1.json.gz --schedule interleaved.csv\n"
      "  dualpipe-sim explain pp_rank_*.json --format primus --chunks 2");
  explain.callback([options, &explain] { run(explain, *options); });
}

}  // namespace dualpipe
