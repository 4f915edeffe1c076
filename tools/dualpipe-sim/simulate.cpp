#include "dualpipe/sim/simulate/simulate.h"

#include <fmt/core.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/report/run_report.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct SimulateOptions {
  ScheduleOptions schedule;
  CostOptions costs;
  std::string trace, svg, json, csv, gantt;
  std::string width;
  std::vector<std::string> trace_ranks, trace_window;
};

TraceFilter trace_filter(const SimulateOptions& options, int ranks) {
  TraceFilter filter;
  if (!options.trace_ranks.empty()) {
    const auto rank_from = [&](int least) {
      return [=](std::string_view text) { return static_cast<int>(parse_integer(text, least, ranks - 1)); };
    };
    filter.first_rank = value_of("--trace-ranks", options.trace_ranks[0], rank_from(0));
    filter.last_rank = value_of("--trace-ranks", options.trace_ranks[1], rank_from(filter.first_rank));
  }
  if (!options.trace_window.empty()) {
    filter.begin = value_of("--trace-window", options.trace_window[0], parse_duration);
    filter.end = value_of("--trace-window", options.trace_window[1], parse_duration);
    if (filter.end <= filter.begin) throw InputError("--trace-window: the end must be after the begin");
  }
  return filter;
}

// Of text on standard output.
int columns(const SimulateOptions& options, int otherwise) {
  if (options.width.empty()) return terminal_width(otherwise);
  const auto count = [](std::string_view text) { return static_cast<int>(parse_integer(text, 20, 100'000)); };
  return value_of("--width", options.width, count);
}

GanttOptions gantt_options(const SimulateOptions& options) {
  GanttOptions gantt;
  const bool to_terminal = options.gantt == "-";
  if (to_terminal || !options.width.empty()) gantt.width = columns(options, gantt.width);
  gantt.color = to_terminal && terminal_has_color();
  return gantt;
}

// What is printed for people when nothing else claims standard output.
bool prints_summary(const SimulateOptions& options) {
  const auto machine = {&options.trace, &options.svg, &options.json, &options.csv};
  return std::ranges::none_of(machine, [](const std::string* path) { return *path == "-"; });
}

// The summary goes to standard output, too, below a Gantt chart where there is one.
void check_files(const SimulateOptions& options) {
  std::vector<NamedFile> results{{"--trace", options.trace, "trace"},
                                 {"--svg", options.svg, "picture"},
                                 {"--json", options.json, "figures"},
                                 {"--csv", options.csv, "rows"},
                                 {"--gantt", options.gantt, "chart"}};
  if (prints_summary(options) && options.gantt != "-") results.push_back({"standard output", "-", "summary"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", options.schedule.file(), "schedule"},
                                              {"--costs", options.costs.file, "costs"}});
}

void run(const SimulateOptions& options) {
  check_files(options);
  const GanttOptions chart = gantt_options(options);
  const Program program = lower_valid(options.schedule.load());
  const TraceFilter filter = trace_filter(options, program.schedule.ranks());
  const Costs costs = stage_costs(options.costs.costs(), program.schedule.placement);
  const Timeline timeline = simulate(program, costs, options.trace.empty() ? Record::ops : Record::spans);
  const RunReport report = run_report(program, costs, timeline);

  const auto write = [](const std::string& path, const std::function<void(std::ostream&)>& writer) {
    if (!path.empty()) write_output(path, writer);
  };
  write(options.trace, [&](std::ostream& out) { write_chrome_trace(out, program, costs, timeline, filter); });
  write(options.svg, [&](std::ostream& out) { write_gantt_svg(out, program, timeline); });
  write(options.json, [&](std::ostream& out) { write_json(out, report); });
  write(options.csv, [&](std::ostream& out) { out << to_csv(report); });
  write(options.gantt, [&](std::ostream& out) { out << gantt(program, timeline, chart); });
  if (!prints_summary(options)) return;
  const TextLayout layout{.width = static_cast<std::size_t>(columns(options, 0)), .bytes = options.costs.byte_units()};
  write_output("-", [&](std::ostream& out) { out << (options.gantt == "-" ? "\n" : "") << to_text(report, layout); });
}

}  // namespace

void add_simulate(CLI::App& app) {
  auto options = std::make_shared<SimulateOptions>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& simulate = *app.add_subcommand("simulate", "Runs one schedule: per-rank figures, Gantt charts, a trace");
  options->schedule.add_to(simulate);
  options->costs.add_to(simulate);
  const auto output = [&](const char* name, std::string& path, const char* help) {
    return simulate.add_option(name, path, help)->expected(0, 1)->default_str("-")->type_name("[FILE]")->group(results);
  };
  auto* trace = output("--trace", options->trace, "Chrome trace, for ui.perfetto.dev");
  output("--svg", options->svg, "Gantt chart as a picture");
  output("--json", options->json, "All figures");
  output("--csv", options->csv, "A row per rank");
  output("--gantt", options->gantt, "Gantt chart as text, in colour on a terminal");
  simulate.add_option("--width", options->width, "Columns of the text, and of the text Gantt (the terminal's)")
      ->type_name("N")
      ->group(results);
  simulate.add_option("--trace-ranks", options->trace_ranks, "FIRST LAST: only these ranks in the trace")
      ->type_name("N")
      ->expected(2)
      ->needs(trace)
      ->group(results);
  simulate.add_option("--trace-window", options->trace_window, "BEGIN END: only this time in the trace")
      ->type_name("TIME")
      ->expected(2)
      ->needs(trace)
      ->group(results);
  simulate.footer(
      "Examples:\n"
      "  dualpipe-sim simulate 1f1b --ranks 4 --microbatches 8 --gantt -\n"
      "  dualpipe-sim simulate dualpipe --ranks 8 --microbatches 20 --overlapped 2.5ms --trace out.json --svg out.svg\n"
      "  dualpipe-sim simulate pytorch.csv --comm stream --latency 20us --bandwidth 50GB/s --bytes 32MiB --json -\n"
      "  dualpipe-sim simulate dualpipe.csv --chains 2");
  simulate.callback([options] { run(*options); });
}

}  // namespace dualpipe
