#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/estimate_report.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/sweep_page.h"
#include "dualpipe/sim/report/sweep_report.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/sweep/sweep.h"

namespace dualpipe {
namespace {

using HtmlJson = nlohmann::json;

constexpr std::size_t table_rows_max = 500;
constexpr std::size_t detail_ops_max = 60'000;  // of all details together but the first: some megabytes
constexpr std::size_t first_detail_ops_max = 300'000;

std::string title_of_row(const SweepRow& row) {
  const std::string shape = row.tensor > 0 ? fmt::format("t = {}, P = {}, d = {}", row.tensor, row.ranks, row.data)
                                           : fmt::format("{} ranks", row.ranks);
  return fmt::format("{}, {}, {} micro-batches, point {}", row.schedule, shape, row.micro_batches, row.point);
}

HtmlJson ops_json(const Program& program, const Timeline& timeline, int rank, Time origin,
                  const std::vector<int>& chunks) {
  HtmlJson ops = HtmlJson::array();
  const int shades = 1 + *std::ranges::max_element(chunks);
  for (const auto& unit : detail::report::units_of(program, timeline, rank)) {
    const Op first = unit.ops.front();
    const double shade = shades == 1 ? 0 : static_cast<double>(chunks[first.stage]) / (shades - 1);
    for (const auto& value :
         {HtmlJson(detail::report::class_of(unit)), HtmlJson(shade), HtmlJson(first.stage), HtmlJson(first.micro_batch),
          HtmlJson(unit.span.start - origin), HtmlJson(unit.span.end - unit.span.start)}) {
      ops.push_back(value);
    }
  }
  return ops;
}

HtmlJson causes_json(const ExplainReport& report) {
  HtmlJson causes = HtmlJson::array();
  for (const CauseReport& each : report.causes) {
    const double share = report.idle > 0 ? static_cast<double>(each.time) / static_cast<double>(report.idle) : 0;
    const CauseSource& most = each.sources.front();
    causes.push_back({name(each.cause), each.time, share, fmt::format("rank {} ({})", most.rank, most.op)});
  }
  return causes;
}

// What is seen of one point when it is looked at.
HtmlJson detail_json(const SweepRow& row, const Program& program, const Costs& costs) {
  const Timeline timeline = simulate(program, costs, Record::spans);
  const ExplainReport explained = explain_report(program, costs, timeline, explain(program, costs, timeline));
  const Time origin = detail::report::bounds_of(timeline).start;
  const std::vector<int> chunks = detail::report::chunk_of_stages(program.schedule.placement);
  HtmlJson ranks = HtmlJson::array();
  Bytes peak = 0;
  const RankMemories memories(program, costs);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    HtmlJson memory = HtmlJson::array();
    for (const MemoryPoint& point : memories.over_time(timeline, rank)) {
      memory.push_back(std::max<Time>(0, point.time - origin));
      memory.push_back(point.bytes);
    }
    const Bytes most = memories.of(rank).peak;
    peak = std::max(peak, most);
    ranks.push_back({{"busy", timeline.ranks[static_cast<std::size_t>(rank)].busy},
                     {"peak", most},
                     {"ops", ops_json(program, timeline, rank, origin, chunks)},
                     {"memory", most > 0 ? memory : HtmlJson::array()}});
  }
  return {{"title", title_of_row(row)},
          {"makespan", timeline.makespan()},
          {"peak", peak},
          {"ranks", ranks},
          {"causes", causes_json(explained)}};
}

// Of the best rows, as many as there is room for.
HtmlJson details_json(const SweepReport& report, std::size_t count) {
  HtmlJson details = HtmlJson::array();
  const Sweep sweep(report.grid);
  std::size_t ops = 0;
  for (std::size_t i = 0; i < std::min(count, report.rows.size()); ++i) {
    const SweepRun run = sweep.run_of(report.rows[i].point);
    ops += run.program->schedule.ops.size();
    if (ops > (i == 0 ? first_detail_ops_max : detail_ops_max)) break;
    details.push_back(detail_json(report.rows[i], *run.program, run.costs));
  }
  return details;
}

// Rows of the table, as they are written.
class HtmlRows {
 public:
  HtmlRows(const SweepReport& report, std::size_t details) : report_(report), details_(details) {
    const bool is_cluster = report.grid.cluster.has_value();
    const SweepRow& first = report.rows.front();
    column("rank");
    column("schedule", true);
    if (is_cluster) column("tensor");
    column(is_cluster ? "pipeline" : "ranks");
    if (is_cluster) column("data");
    column("micro-batches");
    for (const std::string& each : report.columns) column(each, true);
    column(first.draws ? "median " + time_name(report) : time_name(report));
    if (first.draws) {
      for (const char* const each : {"5 %", "95 %", "median ±", "wins"}) column(each);
    }
    if (first.tokens_per_second) column("tokens/s");
    if (first.flops_utilization) column("MFU");
    column("bubble");
    if (report.has_memory()) column("memory");
    if (first.fits) column("fits", true);
    column("chart", true);
  }

  [[nodiscard]] std::string head() const { return head_; }

  [[nodiscard]] std::string row(std::size_t number) const {
    const SweepRow& row = report_.rows[number];
    std::string text = fmt::format("<tr{}{}>", row.fits == false ? " class=\"no\"" : "",
                                   number < details_ ? fmt::format(" data-detail=\"{}\"", number) : "");
    const auto add = [&](double value, const std::string& shown) {
      text += fmt::format("<td data-v=\"{}\">{}</td>", value, xml_text(shown));
    };
    const auto count = [&](std::int64_t value) { add(static_cast<double>(value), fmt::format("{}", value)); };
    const auto words = [&](std::string_view value) { text += fmt::format("<td class=\"l\">{}</td>", xml_text(value)); };
    count(static_cast<std::int64_t>(number) + 1);
    words(row.schedule);
    if (row.tensor > 0) count(row.tensor);
    count(row.ranks);
    if (row.tensor > 0) count(row.data);
    count(row.micro_batches);
    for (const std::string& value : row.values) words(value);
    const auto add_time = [&](Time time) { add(static_cast<double>(time), format_time(time)); };
    add_time(row.step);
    if (row.draws) {
      const Quantiles& step = row.draws->step;
      add_time(step.low);
      add_time(step.high);
      add(step.median_error(), format_rate(step.median_error()));
      add(row.draws->win_rate, fmt::format("{:.0f} %", 100 * row.draws->win_rate));
    }
    if (row.tokens_per_second) add(*row.tokens_per_second, format_number(*row.tokens_per_second));
    if (row.flops_utilization) add(*row.flops_utilization, format_rate(*row.flops_utilization));
    add(row.bubble_rate, format_rate(row.bubble_rate));
    if (report_.has_memory()) add(static_cast<double>(row.memory), format_bytes(row.memory, ByteUnits::decimal));
    if (row.fits) words(*row.fits ? "yes" : "no");
    text +=
        number < details_
            ? fmt::format("<td class=\"l\"><button data-show=\"{}\" aria-label=\"Show the chart of {}\">show</button>",
                          number, xml_text(title_of_row(row)))
            : "<td class=\"l\">";
    return text + "</td></tr>\n";
  }

 private:
  void column(std::string_view title, bool is_text = false) {
    head_ += fmt::format("<th scope=\"col\"{} aria-sort=\"none\"><button type=\"button\">{}</button></th>",
                         is_text ? " class=\"l\"" : "", xml_text(title));
  }

  const SweepReport& report_;
  std::size_t details_;
  std::string head_;
};

std::string explanation_of_draws(const SweepReport& report) {
  if (report.seeds < 2) return "";
  return fmt::format(
      "<p class=\"soft\">5 % and 95 %: so many of the draws take no longer. Median ±: that of all such draws is so "
      "near, with 95 % "
      "confidence. Wins: in how many it is the shortest of those that fit, {}.</p>\n",
      report.grid.cluster ? "under the same costs" : "of the same ranks, micro-batches and costs");
}

void write_table(std::ostream& out, const SweepReport& report, std::size_t details) {
  const HtmlRows rows(report, details);
  const std::size_t count = std::min(table_rows_max, report.rows.size());
  out << fmt::format(
             "<section aria-labelledby=\"best\"><h2 id=\"best\">Points, best first</h2>\n{}"
             "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"best\"><table id=\"rows\">"
             "<caption>{} of {}. A heading sorts by its column.</caption>\n<thead><tr>",
             explanation_of_draws(report), count, points_text(report))
      << rows.head() << "</tr></thead>\n<tbody>\n";
  for (std::size_t i = 0; i < count; ++i) out << rows.row(i);
  out << "</tbody></table></div><p id=\"said\" class=\"soft\" aria-live=\"polite\"></p></section>\n";
}

void write_plots(std::ostream& out, const SweepReport& report) {
  out << "<section aria-labelledby=\"plots\"><h2 id=\"plots\">Plots</h2><div class=\"plots\">\n";
  const PlotLayout layout{.width = 460, .height = 280};  // small, so that its text can be read on a telephone
  out << plot_svg(lines_plot(report), layout);
  if (report.has_memory()) out << plot_svg(pareto_plot(report), layout);
  for (const std::string& axis : sensitivity_axes(report)) out << plot_svg(sensitivity_plot(report, axis), layout);
  out << "</div></section>\n";
}

void write_chart(std::ostream& out, const SweepReport& report, std::size_t details) {
  out << R"(<section id="chart" aria-labelledby="chart-of"><h2 id="chart-of">Gantt chart</h2>
<div class="bar"><label>of <select id="pick">)";
  for (std::size_t i = 0; i < details; ++i) {
    out << fmt::format("<option value=\"{}\">{}</option>", i, xml_text(title_of_row(report.rows[i])));
  }
  out << R"(</select></label></div>
<div class="bar" role="toolbar" aria-label="Part of the time that is shown">
<button data-do="in">zoom in</button>
<button data-do="out">zoom out</button>
<button data-do="left">earlier</button>
<button data-do="right">later</button>
<button data-do="all">all</button></div>
<canvas id="gantt" tabindex="0" role="img"></canvas>
<p id="hover" aria-live="polite"></p>
<p class="soft"><i class="key" style="background:#56b4e9"></i>F &#160;
<i class="key" style="background:#e69f00"></i>B &#160;
<i class="key" style="background:#cc79a7"></i>I &#160;
<i class="key" style="background:#009e73"></i>W &#160;
<i class="key" style="background:#f0e442"></i>F&amp;B &#160;
paler: a rank's later stages; below a rank, what it holds</p>
<p class="soft">With the chart focused: + and - zoom, arrows left and right move, 0 shows all; up and down choose
a rank, n and p its next and previous op.</p>
<h3>Ranks</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Ranks">
<table id="per-rank">
<thead><tr><th class="l" scope="col">rank</th>
<th scope="col">busy</th>
<th scope="col">idle</th>
<th scope="col">bubble</th>
<th scope="col">peak memory</th></tr>
</thead><tbody></tbody></table></div>
<h3>Why ranks idle</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Why ranks idle">
<table id="causes">
<thead><tr><th class="l" scope="col">cause</th>
<th scope="col">of idle time</th>
<th scope="col">time</th>
<th scope="col">most of it by</th></tr>
</thead><tbody></tbody></table></div>
</section>
)";
}

}  // namespace

void write_html(std::ostream& out, const SweepReport& report, std::size_t details) {
  const HtmlJson data = details_json(report, details);
  const SweepRow& best = report.rows.front();
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Pipeline schedules: "
      << report.points << " points</title>\n<style>" << detail::report::page_style << "</style></head>\n<body>\n"
      << "<a class=\"skip\" href=\"#chart\">To the chart</a>\n<header><h1>Pipeline schedules</h1>\n";
  out << fmt::format("<p>Best of {}: <strong>{}</strong>, {}{}", points_text(report), xml_text(title_of_row(best)),
                     best.draws ? "median " : "", format_time(best.step));
  if (best.tokens_per_second) out << fmt::format(", {} tokens per second", format_number(*best.tokens_per_second));
  out << ".</p>\n";
  if (report.left_out > 0) {
    out << fmt::format("<p class=\"soft\">{} points are left out, the first as: {}</p>\n", report.left_out,
                       xml_text(report.left_out_reason));
  }
  out << "</header>\n<main>\n";
  write_table(out, report, data.size());
  write_plots(out, report);
  const std::string scripts(detail::report::table_script);
  if (data.empty()) {
    out << "<section id=\"chart\"><h2>Gantt chart</h2><p>None is here, or the best point has too many ops for a page: "
           "dualpipe-sim simulate --svg draws them.</p></section>\n</main>\n<script>"
        << scripts << "</script>\n</body></html>\n";
    return;
  }
  write_chart(out, report, data.size());
  // "</script" in a name would end it.
  std::string text = data.dump(-1, ' ', true, HtmlJson::error_handler_t::replace);
  for (std::size_t at = 0; (at = text.find('<', at)) != text.npos;) text.replace(at, 1, "\\u003c");
  out << "</main>\n<script type=\"application/json\" id=\"data\">" << text << "</script>\n<script>" << scripts
      << detail::report::chart_script << "</script>\n</body></html>\n";
}

}  // namespace dualpipe
