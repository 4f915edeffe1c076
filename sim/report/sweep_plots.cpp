#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/report/sweep_report.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

// Those that fit; or all, where none does.
std::vector<const SweepRow*> drawn_rows(const SweepReport& report) {
  std::vector<const SweepRow*> rows;
  const bool any_fits = report.rows.front().fits.value_or(true);  // the best come first
  for (const SweepRow& row : report.rows) {
    if (!any_fits || row.fits.value_or(true)) rows.push_back(&row);
  }
  return rows;
}

std::string note_of_draws(const SweepReport& report) {
  std::string note;
  if (!report.rows.front().fits.value_or(true)) note = "none of them fits";
  if (report.seeds < 2) return note;
  return fmt::format("{}{}the median, and 5 % to 95 %, of {} draws", note, note.empty() ? "" : "; ", report.seeds);
}

// What is plotted of a row: tokens per second where they are known, or else something that is known of all.
class PlottedFigure {
 public:
  enum class Otherwise : std::uint8_t { idle_share, time };

  PlottedFigure(const SweepReport& report, Otherwise otherwise)
      : has_tokens_(report.rows.front().tokens_per_second.has_value()), otherwise_(otherwise) {}

  [[nodiscard]] const char* title() const {
    if (has_tokens_) return "tokens per second";
    return is_share() ? "bubble, % of ranks x makespan" : "ms for a micro-batch";
  }
  [[nodiscard]] const char* name() const {
    return has_tokens_ ? "Tokens per second" : is_share() ? "Idle time" : "Time";
  }
  [[nodiscard]] bool is_share() const { return !has_tokens_ && otherwise_ == Otherwise::idle_share; }

  [[nodiscard]] PlotPoint point(double x, const SweepRow& row) const {
    const std::string text = fmt::format("{}, point {}", row.schedule, row.point);
    if (is_share()) {
      PlotPoint point{x, 100 * row.bubble_rate, text, {}};
      if (row.draws) point.range = PlotRange{100 * row.draws->bubble_low, 100 * row.draws->bubble_high};
      return point;
    }
    PlotPoint point{x, of_step(row, row.step), text, {}};
    if (!row.draws || row.draws->step.low <= 0) return point;
    const auto [low, high] = std::minmax({of_step(row, row.draws->step.low), of_step(row, row.draws->step.high)});
    point.range = PlotRange{low, high};
    return point;
  }

 private:
  // If the row's step took so long.
  [[nodiscard]] double of_step(const SweepRow& row, Time step) const {
    if (!has_tokens_) return static_cast<double>(step) * 1e-6 / static_cast<double>(row.micro_batches);
    return *row.tokens_per_second * (static_cast<double>(row.step) / static_cast<double>(step));
  }

  bool has_tokens_;
  Otherwise otherwise_;
};

// Lines of one schedule each, by a number of each row: the best row at each.
template <typename X>
std::vector<PlotSeries> best_of_each(const SweepReport& report, const PlottedFigure& figure, X x) {
  std::vector<PlotSeries> series;
  for (const SweepRow* row : drawn_rows(report)) {  // the best come first
    const double at = x(*row);
    auto found = std::ranges::find(series, row->schedule, &PlotSeries::name);
    if (found == series.end()) found = series.insert(series.end(), PlotSeries{row->schedule, {}});
    if (std::ranges::find(found->points, at, &PlotPoint::x) != found->points.end()) continue;
    found->points.push_back(figure.point(at, *row));
  }
  constexpr std::size_t lines_max = 14;
  if (series.size() > lines_max) series.resize(lines_max);
  for (PlotSeries& each : series) std::ranges::sort(each.points, {}, &PlotPoint::x);
  return series;
}

}  // namespace

Plot lines_plot(const SweepReport& report) {
  std::set<std::int64_t> micro_batches;
  std::set<std::int64_t> ranks;
  for (const SweepRow* row : drawn_rows(report)) {
    micro_batches.insert(row->micro_batches);
    ranks.insert(row->ranks);
  }
  const bool by_ranks = micro_batches.size() < 2 && ranks.size() > 1;
  const std::set<std::int64_t> values = std::move(by_ranks ? ranks : micro_batches);
  constexpr std::size_t names_max = 12;
  const bool has_names = values.size() <= names_max;  // few stand side by side, though one is twice the other
  Plot plot;
  for (const std::int64_t each : values) {
    if (has_names) plot.x_names.push_back(fmt::format("{}", each));
  }
  plot.x_title = by_ranks ? "ranks of a pipeline" : "micro-batches";
  const PlottedFigure figure(report, PlottedFigure::Otherwise::idle_share);
  plot.y_title = figure.title();
  plot.title = fmt::format("{} by {}", figure.name(), plot.x_title);
  plot.from_zero = figure.is_share();  // of tokens a few percent matter
  plot.note = note_of_draws(report);
  plot.series = best_of_each(report, figure, [&](const SweepRow& row) {
    const std::int64_t value = by_ranks ? row.ranks : row.micro_batches;
    return static_cast<double>(has_names ? std::distance(values.begin(), values.find(value)) : value);
  });
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
    PlotPoint point{static_cast<double>(row.memory) * 1e-9,
                    time,
                    fmt::format("{}, point {}: {} x {}", row.schedule, row.point, row.ranks, row.micro_batches),
                    {},
                    row.schedule};
    if (!row.draws || row.step <= 0) return point;
    const double share = time / static_cast<double>(row.step);
    point.range =
        PlotRange{share * static_cast<double>(row.draws->step.low), share * static_cast<double>(row.draws->step.high)};
    return point;
  };
  const bool any_fits = report.rows.front().fits.value_or(true);
  PlotSeries all{any_fits && report.rows.back().fits == false ? "all that fit" : "all points", {}, false};
  PlotSeries too_large{.name = "what does not fit", .points = {}, .has_line = false, .is_faint = true};
  PlotSeries front{"none is better in both", {}, true, false};
  for (const SweepRow& row : report.rows) {  // the best come first
    PlotSeries& series = any_fits && row.fits == false ? too_large : all;
    if (series.points.size() < points_max) series.points.push_back(point_of(row));
  }
  std::vector<PlotPoint> sorted;
  for (const SweepRow* row : drawn_rows(report)) sorted.push_back(point_of(*row));
  std::ranges::sort(sorted, [](const PlotPoint& a, const PlotPoint& b) { return a.x != b.x ? a.x < b.x : a.y < b.y; });
  for (const PlotPoint& each : sorted) {
    if (front.points.empty() || each.y < front.points.back().y) front.points.push_back(each);
  }
  constexpr std::size_t labels_max = 12;
  if (front.points.size() > labels_max) {
    for (PlotPoint& each : front.points) each.label.clear();
  }
  for (PlotSeries* const series : {&all, &too_large}) {
    if (series->points.size() == points_max) series->name += fmt::format(", the best {}", points_max);
    for (PlotPoint& each : series->points) each.range.reset(), each.label.clear();  // there is room for the front's
  }
  plot.note = note_of_draws(report);
  if (too_large.points.empty()) {
    plot.series = {std::move(all), std::move(front)};
  } else {
    plot.series = {std::move(too_large), std::move(all), std::move(front)};  // the last is on top
  }
  return plot;
}

std::vector<std::string> sensitivity_axes(const SweepReport& report) {
  std::vector<std::string> names;
  for (const SweepAxis& each : report.grid.axes) {
    constexpr std::size_t names_max = 12;
    const bool varies = std::ranges::find(report.columns, each.name) != report.columns.end();
    if (varies && each.values.size() <= names_max) names.push_back(each.name);
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
  const PlottedFigure figure(report, PlottedFigure::Otherwise::time);  // what is slower idles less
  Plot plot{.title = fmt::format("What {} changes", axis),
            .x_title = axis,
            .y_title = figure.title(),
            .x_names = of_grid->values};
  plot.note = note_of_draws(report);
  plot.series = best_of_each(report, figure, [&](const SweepRow& row) {
    return static_cast<double>(std::ranges::find(of_grid->values, row.values[place]) - of_grid->values.begin());
  });
  return plot;
}

}  // namespace dualpipe
