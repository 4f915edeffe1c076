#include "dualpipe/sim/report/sweep_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/estimate_report.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/sweep/sweep_file.h"

namespace dualpipe {
namespace {

// What varies, besides the schedule and its place.
std::vector<std::string> varying_columns(const SweepGrid& grid) {
  std::vector<std::string> columns;
  for (std::size_t i = 0; i < grid.parameters.size(); ++i) {
    if (grid.parameters[i].size() > 1) columns.emplace_back(parameters()[i].name);
  }
  for (const SweepAxis& each : grid.axes) {
    if (each.values.size() > 1) columns.push_back(each.name);
  }
  return columns;
}

SweepRow row_of(const nlohmann::json& json, const std::vector<std::string>& columns) {
  SweepRow row;
  row.point = json.at("point").get<std::size_t>();
  row.schedule = json.at("schedule").get<std::string>();
  row.tensor = json.value("tensor_parallel", 0);
  row.data = json.value("data_parallel", 0);
  row.ranks = json.at("ranks").get<int>();
  row.micro_batches = json.at("microbatches").get<std::int64_t>();
  for (const std::string& column : columns) {
    const auto value = json.find(column);
    row.values.push_back(value == json.end() ? "" : value->is_string() ? value->get<std::string>() : value->dump());
  }
  row.makespan = json.at("makespan_ns").get<Time>();
  row.step = json.value("step_ns", row.makespan);
  row.bubble_rate = json.at("bubble_rate_makespan").get<double>();
  row.memory = json.at("peak_memory_bytes").get<Bytes>();
  const auto number = [&](const char* key) -> std::optional<double> {
    if (!json.contains(key)) return std::nullopt;
    return json[key].get<double>();
  };
  if (json.contains("fits")) row.fits = json["fits"].get<bool>();
  row.tokens_per_second = number("tokens_per_second");
  row.flops_utilization = number("flops_utilization");
  return row;
}

// Best first.
bool is_better(const SweepRow& a, const SweepRow& b) {
  const bool a_fits = a.fits.value_or(true);
  if (a_fits != b.fits.value_or(true)) return a_fits;
  return a.rate() != b.rate() ? a.rate() > b.rate() : a.point < b.point;
}

}  // namespace

bool SweepReport::has_memory() const {
  return std::ranges::any_of(rows, [](const SweepRow& row) { return row.memory > 0; });
}

SweepReport load_sweep_report(const std::vector<std::string>& paths) {
  SweepReport report;
  bool is_first = true;
  merge_sweep_files(paths, [&](std::string_view line) {
    if (std::exchange(is_first, false)) {
      const SweepHeader header = parse_sweep_header(line.substr(0, line.size() - 1), paths[0]);
      report.grid = grid_of_json(header.grid, paths[0]);
      report.points = header.points;
      report.columns = varying_columns(report.grid);
      return;
    }
    try {
      const nlohmann::json json = nlohmann::json::parse(line);
      if (!json.contains("left_out")) return report.rows.push_back(row_of(json, report.columns));
      if (report.left_out++ == 0) report.left_out_reason = json["left_out"].get<std::string>();
    } catch (const nlohmann::json::exception&) {
      throw InputError(fmt::format("{}: a line is damaged: {}", paths[0], printable(line.substr(0, 60))));
    }
  });
  if (report.rows.empty()) {
    throw InputError(fmt::format("{}: no point has figures; of the first: {}", paths[0], report.left_out_reason));
  }
  std::ranges::sort(report.rows, is_better);
  return report;
}

std::string to_text(const SweepReport& report, std::size_t rows_max, const TextLayout& layout) {
  const bool is_cluster = report.grid.cluster.has_value();
  const SweepRow& first = report.rows.front();
  std::vector<Column> columns{{"rank"}, {"point", Align::right, 5}, {"schedule", Align::left}};
  if (is_cluster) columns.insert(columns.end(), {{"t"}, {"P"}, {"d"}, {"M"}});
  if (!is_cluster) columns.insert(columns.end(), {{"ranks"}, {"micro-batches"}});
  for (const std::string& each : report.columns) columns.push_back({each, Align::right, 4});
  columns.push_back({is_cluster ? "step" : "makespan"});
  if (first.tokens_per_second) columns.push_back({"tokens/s"});
  if (first.flops_utilization) columns.push_back({"MFU", Align::right, 2});
  columns.push_back({"bubble", Align::right, 1});
  if (report.has_memory()) columns.push_back({"memory"});
  if (first.fits) columns.push_back({"fits", Align::left});
  TextTable table(std::move(columns));
  for (std::size_t i = 0; i < std::min(rows_max, report.rows.size()); ++i) {
    const SweepRow& row = report.rows[i];
    std::vector<std::string> cells{fmt::format("{}", i + 1), fmt::format("{}", row.point), row.schedule};
    if (is_cluster) cells.push_back(fmt::format("{}", row.tensor));
    cells.push_back(fmt::format("{}", row.ranks));
    if (is_cluster) cells.push_back(fmt::format("{}", row.data));
    cells.push_back(fmt::format("{}", row.micro_batches));
    for (const std::string& value : row.values) cells.push_back(printable(value));
    cells.push_back(format_time(row.step));
    if (row.tokens_per_second) cells.push_back(format_number(*row.tokens_per_second));
    if (row.flops_utilization) cells.push_back(format_rate(*row.flops_utilization));
    cells.push_back(format_rate(row.bubble_rate));
    if (report.has_memory()) cells.push_back(format_bytes(row.memory, layout.bytes));
    if (row.fits) cells.emplace_back(*row.fits ? "yes" : "no");
    table.add_row(std::move(cells));
  }
  std::vector<std::string> gone;
  if (layout.width > 0) gone = table.narrow_to(layout.width);
  std::string text = fmt::format("{} of {} points, best first", std::min(rows_max, report.rows.size()), report.points);
  if (report.left_out > 0) {
    text += fmt::format("; {} left out, the first as: {}", report.left_out, printable(report.left_out_reason));
  }
  text = wrapped(text) + "\n" + table.to_text();
  if (is_cluster) {
    text += "\n" + wrapped(
                       "t ranks share a layer, P are a pipeline, d copies share the batch; a step is the makespan "
                       "and what the copies exchange after it, none of which is hidden");
  }
  if (!gone.empty()) text += wrapped_list(no_room_text(layout.width), gone);
  return text;
}

namespace {

// Lines of one schedule each, by a number of each row: the best row at each.
template <typename X, typename Y>
std::vector<PlotSeries> best_of_each(const SweepReport& report, X x, Y y) {
  std::vector<PlotSeries> series;
  for (const SweepRow& row : report.rows) {  // the best come first
    if (row.fits == false) continue;
    const std::optional<double> at = x(row);
    if (!at) continue;
    auto found = std::ranges::find(series, row.schedule, &PlotSeries::name);
    if (found == series.end()) found = series.insert(series.end(), PlotSeries{row.schedule, {}});
    if (std::ranges::find(found->points, *at, &PlotPoint::x) != found->points.end()) continue;
    found->points.push_back({*at, y(row), fmt::format("{}, point {}", row.schedule, row.point)});
  }
  constexpr std::size_t lines_max = 14;
  if (series.size() > lines_max) series.resize(lines_max);
  for (PlotSeries& each : series) std::ranges::sort(each.points, {}, &PlotPoint::x);
  return series;
}

}  // namespace

Plot lines_plot(const SweepReport& report) {
  std::set<std::int64_t> micro_batches;
  std::set<int> ranks;
  for (const SweepRow& row : report.rows) {
    micro_batches.insert(row.micro_batches);
    ranks.insert(row.ranks);
  }
  const bool by_ranks = micro_batches.size() < 2 && ranks.size() > 1;
  const bool has_tokens = report.rows.front().tokens_per_second.has_value();
  const std::set<std::int64_t> values =
      by_ranks ? std::set<std::int64_t>(ranks.begin(), ranks.end()) : std::move(micro_batches);
  constexpr std::size_t names_max = 12;
  const bool has_names = values.size() <= names_max;  // few stand side by side, though one is twice the other
  Plot plot;
  for (const std::int64_t each : values) {
    if (has_names) plot.x_names.push_back(fmt::format("{}", each));
  }
  plot.x_title = by_ranks ? "ranks of a pipeline" : "micro-batches";
  plot.y_title = has_tokens ? "tokens per second" : "bubble, % of ranks x makespan";
  plot.title =
      has_tokens ? fmt::format("Tokens per second by {}", plot.x_title) : fmt::format("Idle time by {}", plot.x_title);
  plot.from_zero = true;
  plot.series = best_of_each(
      report,
      [&](const SweepRow& row) -> std::optional<double> {
        const std::int64_t value = by_ranks ? row.ranks : row.micro_batches;
        const auto place = std::distance(values.begin(), values.find(value));
        return static_cast<double>(has_names ? place : value);
      },
      [&](const SweepRow& row) { return has_tokens ? *row.tokens_per_second : 100 * row.bubble_rate; });
  return plot;
}

Plot pareto_plot(const SweepReport& report) {
  constexpr std::size_t points_max = 2000;
  const bool has_tokens = report.rows.front().tokens_per_second.has_value();
  Plot plot{.title = "Time against memory",
            .x_title = "memory of the rank that needs most, GB",
            .y_title = has_tokens ? "ms for a million tokens" : "ms for a micro-batch"};
  const auto point_of = [&](const SweepRow& row) {
    const double time = has_tokens ? 1e9 / *row.tokens_per_second
                                   : static_cast<double>(row.step) * 1e-6 / static_cast<double>(row.micro_batches);
    return PlotPoint{static_cast<double>(row.memory) * 1e-9, time,
                     fmt::format("{}, point {}: {} x {}", row.schedule, row.point, row.ranks, row.micro_batches)};
  };
  PlotSeries all{"all points", {}, false};
  PlotSeries front{"none is better in both", {}, true};
  for (const SweepRow& row : report.rows) all.points.push_back(point_of(row));
  std::vector<PlotPoint> sorted = all.points;
  std::ranges::sort(sorted, [](const PlotPoint& a, const PlotPoint& b) { return a.x != b.x ? a.x < b.x : a.y < b.y; });
  for (const PlotPoint& each : sorted) {
    if (front.points.empty() || each.y < front.points.back().y) front.points.push_back(each);
  }
  if (all.points.size() > points_max) {
    all.points.resize(points_max);
    all.name = fmt::format("the best {} points", points_max);
  }
  plot.series = {std::move(all), std::move(front)};
  return plot;
}

std::vector<std::string> sensitivity_axes(const SweepReport& report) {
  std::vector<std::string> names;
  for (const SweepAxis& each : report.grid.axes) {
    constexpr std::size_t names_max = 12;
    if (each.values.size() > 1 && each.values.size() <= names_max) names.push_back(each.name);
  }
  return names;
}

Plot sensitivity_plot(const SweepReport& report, const std::string& axis) {
  const auto column = std::ranges::find(report.columns, axis);
  const auto of_grid = std::ranges::find(report.grid.axes, axis, &SweepAxis::name);
  if (column == report.columns.end() || of_grid == report.grid.axes.end()) {
    throw InputError(
        fmt::format("{} does not vary in this sweep; what does: {}", axis,
                    report.columns.empty() ? "nothing" : fmt::format("{}", fmt::join(report.columns, ", "))));
  }
  const auto place = static_cast<std::size_t>(column - report.columns.begin());
  Plot plot{.title = fmt::format("What {} changes", axis),
            .x_title = axis,
            .y_title = "bubble, % of ranks x makespan",
            .x_names = of_grid->values};
  const bool has_tokens = report.rows.front().tokens_per_second.has_value();
  if (has_tokens) plot.y_title = "tokens per second";
  plot.series = best_of_each(
      report,
      [&](const SweepRow& row) -> std::optional<double> {
        const auto value = std::ranges::find(of_grid->values, row.values[place]);
        return static_cast<double>(value - of_grid->values.begin());
      },
      [&](const SweepRow& row) { return has_tokens ? *row.tokens_per_second : 100 * row.bubble_rate; });
  return plot;
}

}  // namespace dualpipe
