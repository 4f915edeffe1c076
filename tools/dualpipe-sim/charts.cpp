#include "charts.h"

#include <fmt/core.h>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/window.h"
#include "dualpipe/sim/schedule/error.h"
#include "tools/common/options.h"

namespace dualpipe {
namespace {

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

TraceFilter trace_filter(const ChartOptions& options, int ranks) {
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

}  // namespace

void ChartOptions::add_files_to(CLI::App& app, const char* group) {
  add_output(app, "--trace", trace, "Chrome trace, for ui.perfetto.dev")->group(group);
  add_output(app, "--svg", svg, "Gantt chart as a picture")->group(group);
  add_output(app, "--gantt", gantt, "Gantt chart as text, in colour on a terminal")->group(group);
}

void ChartOptions::add_choices_to(CLI::App& app, const char* group) {
  auto* of_trace = app.get_option("--trace");
  auto* of_svg = app.get_option("--svg");
  app.add_option("--width", width, "Columns of the text, and of the text Gantt (the terminal's)")
      ->type_name("N")
      ->group(group);
  app.add_option("--svg-width", svg_width, "Pixels (as wide as the ops need)")
      ->type_name("N")
      ->needs(of_svg)
      ->group(group);
  app.add_option("--title", title, "Above the picture (the schedule's name)")->needs(of_svg)->group(group);
  app.add_flag("--svg-memory", svg_memory, "Memory over time below each rank of the picture")
      ->needs(of_svg)
      ->group(group);
  app.add_option("--window", window, "BEGIN END: only this time in both charts, from the first op on")
      ->type_name("TIME")
      ->expected(2)
      ->group(group);
  app.add_option("--trace-ranks", trace_ranks, "FIRST LAST: only these ranks in the trace")
      ->type_name("N")
      ->expected(2)
      ->needs(of_trace)
      ->group(group);
  app.add_option("--trace-window", trace_window, "BEGIN END: only this time in the trace, from the first op on")
      ->type_name("TIME")
      ->expected(2)
      ->needs(of_trace)
      ->group(group);
}

void ChartOptions::add_results_to(std::vector<NamedFile>& results) const {
  results.push_back({"--trace", trace, "trace"});
  results.push_back({"--svg", svg, "picture"});
  results.push_back({"--gantt", gantt, "chart"});
}

void ChartOptions::check_usage(bool prints_text) const {
  if (!window.empty() && gantt.empty() && svg.empty()) throw CLI::RequiresError("--window", "--gantt or --svg");
  if (width.empty() || prints_text || !gantt.empty()) return;
  throw CLI::ValidationError("--width", "what is written has no columns; leave it out, or add --gantt FILE");
}

int ChartOptions::columns(int otherwise) const {
  if (width.empty()) return terminal_width(otherwise);
  const auto count = [](std::string_view text) { return static_cast<int>(parse_integer(text, 20, 100'000)); };
  return value_of("--width", width, count);
}

ChartOptions::Parsed ChartOptions::parsed() const {
  Parsed parsed;
  parsed.chart.window = parsed.picture.window = window_given("--window", window);
  const bool to_terminal = gantt == "-";
  if (to_terminal || !width.empty()) parsed.chart.width = columns(parsed.chart.width);
  parsed.chart.color = to_terminal && terminal_has_color();
  parsed.chart.letters = !parsed.chart.color && !locale_has_utf8();
  const auto pixels = [](std::string_view text) { return static_cast<int>(parse_integer(text, 400, 10'000)); };
  if (!svg_width.empty()) parsed.picture.width = value_of("--svg-width", svg_width, pixels);
  parsed.picture.title = title;
  parsed.picture.memory = svg_memory;
  parsed.traced = window_given("--trace-window", trace_window);
  return parsed;
}

void write_charts(const ChartOptions& options, const ChartOptions::Parsed& parsed, const TracedRun& run) {
  TraceFilter filter = trace_filter(options, run.program.schedule.ranks());
  if (const auto window = window_in(run.timeline, "--trace-window", parsed.traced)) {
    filter.begin = window->start;
    filter.end = window->end;
  }
  static_cast<void>(window_in(run.timeline, "--window", parsed.chart.window));
  GanttOptions chart = parsed.chart;
  SvgOptions picture = parsed.picture;
  chart.explanation = picture.explanation = run.explanation;
  const auto write = [](const std::string& path, const std::function<void(std::ostream&)>& writer) {
    if (!path.empty()) write_output(path, writer);
  };
  write(options.trace, [&](std::ostream& out) { write_chrome_trace(out, std::span(&run, 1), filter); });
  write(options.svg, [&](std::ostream& out) { write_gantt_svg(out, run.program, run.costs, run.timeline, picture); });
  if (options.gantt == "-") return print(gantt(run.program, run.timeline, chart));
  write(options.gantt, [&](std::ostream& out) { out << gantt(run.program, run.timeline, chart); });
}

}  // namespace dualpipe
