// Charts and traces of one run, as options of the subcommands that make them.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tools/common/output.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct ChartOptions {
  std::string trace, svg, gantt;
  std::string width;  // of all text
  std::string svg_width, title;
  bool svg_memory = false;
  std::vector<std::string> window, trace_ranks, trace_window;

  // The files, then what is to be known of them; in the group of results.
  void add_files_to(CLI::App& app, const char* group);
  void add_choices_to(CLI::App& app, const char* group);

  void add_results_to(std::vector<NamedFile>& results) const;
  // Whether one of them goes to standard output, where it leaves no room for people.
  [[nodiscard]] bool takes_output() const { return trace == "-" || svg == "-"; }
  [[nodiscard]] bool needs_messages() const { return !trace.empty() || !svg.empty(); }
  // Throws CLI::ParseError, wrong usage, for a window of nothing, and where a width has no text, besides `prints_text`.
  void check_usage(bool prints_text) const;
  // Of text on standard output.
  [[nodiscard]] int columns(int otherwise) const;

  // As they are written; read from the command line at once, before what is drawn is simulated.
  struct Parsed {
    GanttOptions chart;
    SvgOptions picture;
    std::optional<Span> traced;
  };
  [[nodiscard]] Parsed parsed() const;
};

// Writes what is asked for; a chart for standard output is printed. `explanation`: of the run; null: without. Throws
// InputError where a window or ranks are none of the run's.
void write_charts(const ChartOptions& options, const ChartOptions::Parsed& parsed, const TracedRun& run);

}  // namespace dualpipe
