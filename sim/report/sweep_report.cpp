#include "dualpipe/sim/report/sweep_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/estimate_report.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/sweep/sweep_file.h"

namespace dualpipe {
namespace {

constexpr std::string_view seed_axis = "seed";

// What varies, besides the schedule, its place and the seed.
std::vector<std::string> varying_columns(const SweepGrid& grid) {
  std::vector<std::string> columns;
  for (std::size_t i = 0; i < grid.parameters.size(); ++i) {
    if (grid.parameters[i].size() > 1) columns.emplace_back(parameters()[i].name);
  }
  for (const SweepAxis& each : grid.axes) {
    if (each.values.size() > 1 && each.name != seed_axis) columns.push_back(each.name);
  }
  return columns;
}

std::size_t seeds_of(const SweepGrid& grid) {
  const auto axis = std::ranges::find(grid.axes, seed_axis, &SweepAxis::name);
  return axis == grid.axes.end() ? 1 : axis->values.size();
}

SweepRow row_of(const nlohmann::json& json, const std::vector<std::string>& columns) {
  SweepRow row;
  // Throws for a number with a fraction or of more than 64 bits, of which get<>() would make any number.
  const auto integer = [&](const char* key) -> std::int64_t {
    return json.at(key).get_ref<const nlohmann::json::number_integer_t&>();
  };
  const auto integer_or = [&](const char* key, std::int64_t otherwise) {
    return json.contains(key) ? integer(key) : otherwise;
  };
  row.point = static_cast<std::size_t>(integer("point"));
  row.schedule = json.at("schedule").get<std::string>();
  row.tensor = static_cast<int>(integer_or("tensor_parallel", 0));
  row.data = static_cast<int>(integer_or("data_parallel", 0));
  row.ranks = static_cast<int>(integer("ranks"));
  row.micro_batches = integer("microbatches");
  for (const std::string& column : columns) {
    const auto value = json.find(column);
    row.values.push_back(value == json.end() ? "" : value->is_string() ? value->get<std::string>() : value->dump());
  }
  row.makespan = integer("makespan_ns");
  row.step = integer_or("step_ns", row.makespan);
  row.bubble_rate = json.at("bubble_rate_makespan").get<double>();
  row.memory = integer("peak_memory_bytes");
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

// Points that differ in their seed alone, on their way to be one row.
class DrawnRows {
 public:
  explicit DrawnRows(const SweepReport& report) : report_(report) {}

  void add(SweepRow row) {
    std::string key = fmt::format("{}\n{}\n{}\n{}\n{}\n{}", row.schedule, row.tensor, row.data, row.ranks,
                                  row.micro_batches, fmt::join(row.values, "\n"));
    const auto [place, is_new] = by_key_.emplace(std::move(key), groups_.size());
    if (is_new) groups_.push_back({row, {}, {}});
    groups_[place->second].draws.push_back(
        {row.point, row.makespan, row.step, row.bubble_rate, row.tokens_per_second, row.flops_utilization});
  }

  [[nodiscard]] std::vector<SweepRow> take() && {
    std::map<std::string, std::vector<Group*>> compared;
    for (Group& each : groups_) {
      if (each.draws.size() != report_.seeds) {
        throw InputError(fmt::format("point {} has figures, but not with each of the {} seeds; run the sweep again",
                                     each.row.point, report_.seeds));
      }
      finish(each);
      if (each.row.fits.value_or(true)) compared[what_is_given(each.row)].push_back(&each);
    }
    for (const auto& [key, groups] : compared) count_wins(groups);
    std::vector<SweepRow> rows;
    for (Group& each : groups_) rows.push_back(std::move(each.row));
    return rows;
  }

 private:
  struct Draw {
    std::size_t point;
    Time makespan;
    Time step;
    double bubble_rate;
    std::optional<double> tokens_per_second;
    std::optional<double> flops_utilization;
  };
  struct Group {
    SweepRow row;
    std::vector<Draw> draws;  // by seed
    std::vector<Time> steps;
  };

  static void finish(Group& group) {
    for (const Draw& each : group.draws) group.steps.push_back(each.step);
    SweepRow& row = group.row;
    row.draws = SweepDraws{.step = quantiles_of(group.steps)};
    std::vector<double> bubbles;
    for (const Draw& each : group.draws) bubbles.push_back(each.bubble_rate);
    row.draws->bubble_low = detail::report::percentile(bubbles, 5);
    row.draws->bubble_high = detail::report::percentile(bubbles, 95);
    const Draw& median = *std::ranges::find(group.draws, row.draws->step.median, &Draw::step);
    row.point = median.point;
    row.makespan = median.makespan;
    row.step = median.step;
    row.bubble_rate = median.bubble_rate;
    row.tokens_per_second = median.tokens_per_second;
    row.flops_utilization = median.flops_utilization;
  }

  // By the values of what no one chooses: rows of the same are compared.
  [[nodiscard]] std::string what_is_given(const SweepRow& row) const {
    std::string given = report_.grid.cluster ? "" : fmt::format("{} {}", row.ranks, row.micro_batches);
    for (std::size_t i = 0; i < report_.columns.size(); ++i) {
      const std::string& name = report_.columns[i];
      const bool is_chosen = name == "recompute" || name == "cut" ||
                             std::ranges::find(parameters(), name, &Parameter::name) != parameters().end();
      if (!is_chosen) given += "\n" + row.values[i];
    }
    return given;
  }

  static void count_wins(const std::vector<Group*>& groups) {
    std::vector<std::span<const Time>> drawn;
    for (const Group* each : groups) drawn.emplace_back(each->steps);
    const std::vector<double> rates = win_rates(drawn);
    for (std::size_t i = 0; i < groups.size(); ++i) groups[i]->row.draws->win_rate = rates[i];
  }

  const SweepReport& report_;
  std::map<std::string, std::size_t> by_key_;
  std::vector<Group> groups_;
};

}  // namespace

bool SweepReport::has_memory() const {
  return std::ranges::any_of(rows, [](const SweepRow& row) { return row.memory > 0; });
}

SweepReport load_sweep_report(const std::vector<std::string>& paths) {
  SweepReport report;
  DrawnRows drawn(report);
  bool is_first = true;
  merge_sweep_files(paths, [&](std::string_view line) {
    if (std::exchange(is_first, false)) {
      const SweepHeader header = parse_sweep_header(line.substr(0, line.size() - 1), paths[0]);
      report.grid = grid_of_json(header.grid, paths[0]);
      report.seeds = seeds_of(report.grid);
      report.points = header.points / report.seeds;
      report.columns = varying_columns(report.grid);
      return;
    }
    try {
      const nlohmann::json json = nlohmann::json::parse(line);
      if (!json.contains("left_out") && report.seeds > 1) return drawn.add(row_of(json, report.columns));
      if (!json.contains("left_out")) return report.rows.push_back(row_of(json, report.columns));
      if (report.left_out++ == 0) report.left_out_reason = json["left_out"].get<std::string>();
    } catch (const nlohmann::json::exception&) {
      throw InputError(fmt::format("{}: a line is damaged: {}", paths[0], printable(line.substr(0, 60))));
    }
  });
  report.left_out /= report.seeds;  // the reason does not depend on what is drawn
  if (report.seeds > 1) report.rows = std::move(drawn).take();
  if (report.rows.empty()) {
    throw InputError(fmt::format("{}: no point has figures; of the first: {}", paths[0], report.left_out_reason));
  }
  std::ranges::sort(report.rows, is_better);
  return report;
}

std::string points_text(const SweepReport& report) {
  std::string text = fmt::format("{} points", report.points);
  if (report.seeds > 1) text += fmt::format(" of {} draws each", report.seeds);
  return text;
}

std::string time_name(const SweepReport& report) { return report.grid.cluster ? "step" : "makespan"; }

namespace {

std::string legend_of_draws(const SweepReport& report, const TextTable& table) {
  if (!report.rows.front().draws) return "";
  std::string text =
      "\n" + wrapped(fmt::format("median     of the {}, and so of what is behind it", time_name(report)));
  if (table.has("median +-")) {
    text += "median +-  the median of all such draws is so near, with 95 % confidence\n";
  }
  if (table.has("wins")) {
    text += report.grid.cluster
                ? "wins       in how many draws it is the shortest of those that fit, under the same costs\n"
                : "wins       in how many draws it is the shortest of those that fit, of the same ranks,\n"
                  "           micro-batches and costs\n";
  }
  return text;
}

}  // namespace

std::string to_text(const SweepReport& report, std::size_t rows_max, const TextLayout& layout) {
  const bool is_cluster = report.grid.cluster.has_value();
  const SweepRow& first = report.rows.front();
  std::vector<Column> columns{{"rank"}, {"point", Align::right, 5}, {"schedule", Align::left}};
  if (is_cluster) columns.insert(columns.end(), {{"t"}, {"P"}, {"d"}, {"M"}});
  if (!is_cluster) columns.insert(columns.end(), {{"ranks"}, {"micro-batches"}});
  for (const std::string& each : report.columns) columns.push_back({each, Align::right, 3});
  columns.push_back({first.draws ? "median" : time_name(report)});
  if (first.draws) {
    columns.insert(columns.end(), {{"5%", Align::right, 6}, {"95%", Align::right, 6}, {"median +-", Align::right, 7}});
    columns.push_back({"wins", Align::right, 1});
  }
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
    if (row.draws) {
      const Quantiles& step = row.draws->step;
      for (const Time time : {step.low, step.high}) cells.push_back(format_time(time));
      cells.push_back(format_rate(step.median_error()));
      cells.push_back(fmt::format("{:.0f}%", 100 * row.draws->win_rate));
    }
    if (row.tokens_per_second) cells.push_back(format_number(*row.tokens_per_second));
    if (row.flops_utilization) cells.push_back(format_rate(*row.flops_utilization));
    cells.push_back(format_rate(row.bubble_rate));
    if (report.has_memory()) cells.push_back(format_bytes(row.memory, layout.bytes));
    if (row.fits) cells.emplace_back(*row.fits ? "yes" : "no");
    table.add_row(std::move(cells));
  }
  std::vector<std::string> gone;
  if (layout.width > 0) gone = table.narrow_to(layout.width);
  std::string text = fmt::format("{} of {}, best first", std::min(rows_max, report.rows.size()), points_text(report));
  if (report.left_out > 0) {
    text += fmt::format("; {} left out, the first as: {}", report.left_out, printable(report.left_out_reason));
  }
  text = wrapped(text) + "\n" + table.to_text();
  text += legend_of_draws(report, table);
  if (is_cluster) {
    text += "\n" + wrapped(
                       "t ranks share a layer, P are a pipeline, d copies share the batch; a step is the makespan "
                       "and what the copies exchange after it, none of which is hidden");
  }
  if (!gone.empty()) text += wrapped_list(no_room_text(layout.width), gone);
  return text;
}

}  // namespace dualpipe
