#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/sweep_report.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct ReportCommand {
  std::vector<std::string> files;
  std::string html, svg, axis;
  std::string plot = "lines";
  std::string top = "10";
  std::string charts = "8";
  std::string width;
};

std::size_t count_of(std::string_view option, const std::string& text, std::int64_t least, std::int64_t most) {
  const auto whole = [&](std::string_view number) { return parse_integer(number, least, most); };
  return static_cast<std::size_t>(value_of(option, text, whole));
}

Plot plot_of(const ReportCommand& command, const SweepReport& report) {
  if (command.plot == "pareto") {
    if (!report.has_memory()) throw InputError("--plot: the costs of this sweep have no bytes; take lines");
    return pareto_plot(report);
  }
  if (command.plot == "lines") return lines_plot(report);
  if (!command.axis.empty()) return sensitivity_plot(report, command.axis);
  const std::vector<std::string> axes = sensitivity_axes(report);
  if (axes.empty()) throw InputError("--plot: nothing but shapes varies in this sweep; take lines, or pareto");
  return sensitivity_plot(report, axes.front());
}

void run(const ReportCommand& command) {
  if (!command.axis.empty() && command.plot != "sensitivity") {
    throw UsageError("--axis", "it is of --plot sensitivity; add it");
  }
  std::vector<NamedFile> read;
  for (const std::string& file : command.files) read.push_back({"FILE", file, "lines"});
  const bool has_text = command.html != "-" && command.svg != "-";
  std::vector<NamedFile> results{{"--html", command.html, "page"}, {"--svg", command.svg, "plot"}};
  if (has_text) results.push_back({"standard output", "-", "text"});
  check_apart(results, read);
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)), .bytes = ByteUnits::decimal};
  if (!command.width.empty()) layout.width = count_of("--width", command.width, 20, 100'000);
  const std::size_t rows = count_of("--top", command.top, 1, 1'000'000);
  const std::size_t charts = count_of("--charts", command.charts, 0, 100);

  const SweepReport report = load_sweep_report(command.files);
  if (!command.svg.empty()) {
    write_output(command.svg, [&](std::ostream& out) { out << plot_svg(plot_of(command, report)); });
  }
  if (!command.html.empty()) {
    write_output(command.html, [&](std::ostream& out) { write_html(out, report, charts); });
  }
  if (has_text) print(to_text(report, rows, layout));
}

}  // namespace

void add_report(CLI::App& app) {
  auto command = std::make_shared<ReportCommand>();
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& report = *app.add_subcommand("report", "What a sweep found: its best points, plots, a page with all of it");
  report.add_option("FILE", command->files, "Of dualpipe-sim sweep; or all shards of one")
      ->required()
      ->type_name("FILE");
  auto* html = add_output(report, "--html", command->html, "One page: the table, the plots, Gantt charts of the best")
                   ->group(results);
  auto* svg = add_output(report, "--svg", command->svg, "One plot")->group(results);
  add_choice(report, "--plot", command->plot, {"lines", "pareto", "sensitivity"},
             "Of the --svg. lines: against micro-batches; pareto: time against memory; sensitivity: against --axis")
      ->needs(svg)
      ->group(results);
  report.add_option("--axis", command->axis, "What the sensitivity is to (the first that varies)")
      ->type_name("NAME")
      ->needs(svg)
      ->group(results);
  report.add_option("--charts", command->charts, "Of how many points the page has Gantt charts, at most")
      ->default_str("8")
      ->type_name("N")
      ->needs(html)
      ->group(results);
  report.add_option("--top", command->top, "Rows of the text")->default_str("10")->type_name("N")->group(results);
  report.add_option("--width", command->width, "Columns of the text (the terminal's)")->type_name("N")->group(results);
  report.footer(
      "Examples:\n"
      "  dualpipe-sim report plan.jsonl --html plan.html\n"
      "  dualpipe-sim report shard*.jsonl --top 20\n"
      "  dualpipe-sim report sweep.jsonl --svg plot.svg --plot sensitivity --axis latency");
  report.callback([command] { run(*command); });
}

}  // namespace dualpipe
