#include "dualpipe/sim/simulate/simulate.h"

#include <fmt/core.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/report/run_report.h"
#include "dualpipe/sim/report/window.h"
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
  std::string width, svg_width, title;
  bool svg_memory = false;
  std::vector<std::string> window, trace_ranks, trace_window;
};

// BEGIN and END of an option.
std::optional<Span> window_given(std::string_view option, const std::vector<std::string>& given) {
  if (given.empty()) return std::nullopt;
  return Span{value_of(option, given[0], parse_duration), value_of(option, given[1], parse_duration)};
}

// The same in the run; what is wrong with it is said of the option.
std::optional<Span> window_in(const Timeline& timeline, std::string_view option, const std::optional<Span>& window) {
  if (!window) return std::nullopt;
  try {
    return window_of(timeline, *window);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", option, error.what()));
  }
}

TraceFilter trace_filter(const SimulateOptions& options, int ranks) {
  TraceFilter filter;
  if (!options.trace_ranks.empty()) {
    const auto rank_from = [&](int least) {
      return [=](std::string_view text) { return static_cast<int>(parse_integer(text, least, ranks - 1)); };
    };
    filter.first_rank = value_of("--trace-ranks", options.trace_ranks[0], rank_from(0));
    filter.last_rank = value_of("--trace-ranks", options.trace_ranks[1], rank_from(filter.first_rank));
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
  gantt.window = window_given("--window", options.window);
  const bool to_terminal = options.gantt == "-";
  if (to_terminal || !options.width.empty()) gantt.width = columns(options, gantt.width);
  gantt.color = to_terminal && terminal_has_color();
  gantt.letters = !gantt.color && !locale_has_utf8();
  return gantt;
}

SvgOptions svg_options(const SimulateOptions& options) {
  SvgOptions svg;
  svg.window = window_given("--window", options.window);
  const auto pixels = [](std::string_view text) { return static_cast<int>(parse_integer(text, 400, 10'000)); };
  if (!options.svg_width.empty()) svg.width = value_of("--svg-width", options.svg_width, pixels);
  svg.title = options.title;
  svg.memory = options.svg_memory;
  return svg;
}

// What is printed for people when nothing else claims standard output.
bool prints_summary(const SimulateOptions& options) {
  const auto machine = {&options.trace, &options.svg, &options.json, &options.csv};
  return std::ranges::none_of(machine, [](const std::string* path) { return *path == "-"; });
}

// The summary goes to standard output, too, below a Gantt chart where there is one.
void check_files(const SimulateOptions& options) {
  if (!options.window.empty() && options.gantt.empty() && options.svg.empty()) {
    throw CLI::RequiresError("--window", "--gantt or --svg");
  }
  std::vector<NamedFile> results{{"--trace", options.trace, "trace"},
                                 {"--svg", options.svg, "picture"},
                                 {"--json", options.json, "figures"},
                                 {"--csv", options.csv, "rows"},
                                 {"--gantt", options.gantt, "chart"}};
  if (prints_summary(options) && options.gantt != "-") results.push_back({"standard output", "-", "summary"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", options.schedule.file(), "schedule"},
                                              {"--costs", options.costs.file, "costs"}});
}

void check_width(const SimulateOptions& options) {
  if (options.width.empty() || prints_summary(options) || !options.gantt.empty()) return;
  throw CLI::ValidationError("--width", "what is written has no columns; leave it out, or add --gantt FILE");
}

void run(const SimulateOptions& options) {
  check_files(options);
  check_width(options);
  const GanttOptions chart = gantt_options(options);
  const SvgOptions picture = svg_options(options);
  const auto traced = window_given("--trace-window", options.trace_window);
  const Planned plan = planned(options.schedule, options.costs, options.costs.costs());
  const Program& program = plan.program;
  const Costs& costs = plan.costs;
  const std::vector<std::string>& remarks = plan.remarks;
  TraceFilter filter = trace_filter(options, program.schedule.ranks());
  const bool has_messages = !options.trace.empty() || !options.svg.empty();
  const Timeline timeline = simulate(program, costs, has_messages ? Record::spans : Record::ops);
  if (const auto window = window_in(timeline, "--trace-window", traced)) {
    filter.begin = window->start;
    filter.end = window->end;
  }
  static_cast<void>(window_in(timeline, "--window", chart.window));
  RunReport report = run_report(program, costs, timeline);
  report.remarks = remarks;

  const auto write = [](const std::string& path, const std::function<void(std::ostream&)>& writer) {
    if (!path.empty()) write_output(path, writer);
  };
  write(options.trace, [&](std::ostream& out) { write_chrome_trace(out, program, costs, timeline, filter); });
  write(options.svg, [&](std::ostream& out) { write_gantt_svg(out, program, costs, timeline, picture); });
  write(options.json, [&](std::ostream& out) { write_json(out, report); });
  write(options.csv, [&](std::ostream& out) { out << to_csv(report); });
  if (options.gantt == "-") {
    print(gantt(program, timeline, chart));
  } else {
    write(options.gantt, [&](std::ostream& out) { out << gantt(program, timeline, chart); });
  }
  if (!prints_summary(options)) return print_notes(remarks);
  const TextLayout layout{.width = static_cast<std::size_t>(columns(options, 0)), .bytes = options.costs.byte_units()};
  print((options.gantt == "-" ? "\n" : "") + to_text(report, layout));
}

}  // namespace

void add_simulate(CLI::App& app) {
  auto options = std::make_shared<SimulateOptions>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& simulate = *app.add_subcommand("simulate", "Runs one schedule: per-rank figures, Gantt charts, a trace");
  add_schedule(simulate, options->schedule);
  add_costs(simulate, options->costs);
  const auto output = [&](const char* name, std::string& path, const char* help) {
    return add_output(simulate, name, path, help)->group(results);
  };
  auto* trace = output("--trace", options->trace, "Chrome trace, for ui.perfetto.dev");
  auto* svg = output("--svg", options->svg, "Gantt chart as a picture");
  output("--json", options->json, "All figures");
  output("--csv", options->csv, "A row per rank");
  output("--gantt", options->gantt, "Gantt chart as text, in colour on a terminal");
  simulate.add_option("--width", options->width, "Columns of the text, and of the text Gantt (the terminal's)")
      ->type_name("N")
      ->group(results);
  simulate.add_option("--svg-width", options->svg_width, "Pixels (as wide as the ops need)")
      ->type_name("N")
      ->needs(svg)
      ->group(results);
  simulate.add_option("--title", options->title, "Above the picture (the schedule's name)")->needs(svg)->group(results);
  simulate.add_flag("--svg-memory", options->svg_memory, "Memory over time below each rank of the picture")
      ->needs(svg)
      ->group(results);
  simulate.add_option("--window", options->window, "BEGIN END: only this time in both charts, from the first op on")
      ->type_name("TIME")
      ->expected(2)
      ->group(results);
  simulate.add_option("--trace-ranks", options->trace_ranks, "FIRST LAST: only these ranks in the trace")
      ->type_name("N")
      ->expected(2)
      ->needs(trace)
      ->group(results);
  simulate
      .add_option("--trace-window", options->trace_window,
                  "BEGIN END: only this time in the trace, from the first op on")
      ->type_name("TIME")
      ->expected(2)
      ->needs(trace)
      ->group(results);
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
