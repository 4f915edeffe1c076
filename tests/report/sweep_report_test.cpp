// What is said of a sweep with several seeds is what the table says of the same draws; plots have what they say.
#include "dualpipe/sim/report/sweep_report.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/report/table.h"
#include "dualpipe/sim/sweep/sweep_file.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

Costs drawn_costs() {
  Costs costs = uniform(1'000'000, 900'000, 700'000, 30'000);
  costs.stages[0].activation = 1 << 20;
  costs.jitter = 0.2;
  return costs;
}

SweepGrid drawn_grid() {
  SweepGrid grid;
  grid.schedules = {"1f1b", "zb1p", "interleaved"};
  grid.ranks = {4};
  grid.micro_batches = {8, 12};
  grid.parameters.resize(parameters().size());
  grid.parameters[0] = {2};
  grid.costs = drawn_costs();
  grid.axes = {{"straggler", {"0.8"}}, {"seed", {}}, {"latency", {"0", "300us"}}, {"memory-limit", {"100MB"}}};
  for (int seed = 0; seed < 30; ++seed) grid.axes[1].values.push_back(std::to_string(seed));
  return grid;
}

SweepReport reported(const SweepGrid& grid) {
  const Scratch scratch;
  write_sweep_file(scratch / "sweep.jsonl", Sweep(grid), {});
  return load_sweep_report({scratch / "sweep.jsonl"});
}

BOOST_AUTO_TEST_SUITE(report_sweep_report)

BOOST_AUTO_TEST_CASE(draws_are_those_of_the_table) {
  const SweepReport report = reported(drawn_grid());
  BOOST_TEST(report.seeds == 30U);
  BOOST_TEST(report.points == 12U);
  BOOST_TEST_REQUIRE(report.rows.size() == 12U);
  BOOST_TEST((report.columns == std::vector<std::string>{"latency"}));
  const Sweep sweep(report.grid);
  std::size_t compared = 0;
  for (const char* const latency : {"0", "300us"}) {
    TableRequest request{.ranks = {4}, .micro_batches = {8, 12}, .costs = drawn_costs(), .seeds = 30};
    for (const char* const name : {"1f1b", "zb1p", "interleaved"}) request.schedules.push_back({name, std::nullopt});
    request.parameters.chunks = 2;
    request.straggler = 0.8;
    std::get<Costs>(request.costs).latency = std::string(latency) == "0" ? 0 : 300'000;
    for (const TableRow& expected : schedule_table(request).rows) {
      for (const SweepRow& row : report.rows) {
        if (row.schedule != expected.schedule || row.micro_batches != expected.micro_batches) continue;
        if (row.values[0] != latency) continue;
        ++compared;
        BOOST_TEST_CONTEXT(row.schedule << ' ' << row.micro_batches << ' ' << latency) {
          BOOST_TEST((row.draws.value().step == expected.makespans.value()));
          BOOST_TEST(row.draws->win_rate == expected.win_rate.value());
          BOOST_TEST(row.step == expected.makespans->median);
          BOOST_TEST(row.draws->bubble_low <= row.bubble_rate);
          BOOST_TEST(row.draws->bubble_high >= row.bubble_rate);
        }
        // The point is that of the median draw.
        const SweepRun run = sweep.run_of(row.point);
        BOOST_TEST(evaluate(*run.program, run.costs).timeline.makespan() == row.step);
      }
    }
  }
  BOOST_TEST(compared == 12U);
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_wins_nothing) {
  SweepGrid grid = drawn_grid();
  grid.axes[3].values = {"3microbatches", "100microbatches"};
  grid.axes[2].values = {"0"};
  std::map<std::string, double> won;
  for (const SweepRow& row : reported(grid).rows) {
    if (!row.fits.value()) BOOST_TEST(row.draws->win_rate == 0);
    won[row.values[0]] += row.draws->win_rate;
  }
  BOOST_TEST(won["3microbatches"] == 0);                                           // none of these holds so little
  BOOST_TEST(won["100microbatches"] == 2.0, boost::test_tools::tolerance(1e-12));  // of 8 micro-batches, and of 12
}

BOOST_AUTO_TEST_CASE(text_says_how_sure_it_is) {
  const SweepReport report = reported(drawn_grid());
  const std::string text = to_text(report, 3);
  BOOST_TEST(text.starts_with("3 of 12 points of 30 draws each, best first\n"));
  for (const char* const each : {"median", "5%", "95%", "median +-", "wins"}) {
    BOOST_TEST(text.find(each) != std::string::npos, each);
  }
}

BOOST_AUTO_TEST_CASE(plots_show_the_draws) {
  const SweepReport report = reported(drawn_grid());
  const Plot lines = lines_plot(report);
  BOOST_TEST_REQUIRE(lines.series.size() == 3U);
  for (const PlotSeries& series : lines.series) {
    BOOST_TEST(series.points.size() == 2U);
    for (const PlotPoint& point : series.points) {
      BOOST_TEST(point.range.value().low <= point.y);
      BOOST_TEST(point.range->high >= point.y);
      BOOST_TEST(point.range->high > point.range->low);
    }
  }
  BOOST_TEST(lines.note == "the median, and 5 % to 95 %, of 30 draws");
  const std::string svg = plot_svg(lines);
  BOOST_TEST(svg.find("class=\"band\"") != std::string::npos);
  BOOST_TEST(svg.find("of 30 draws") != std::string::npos);
  BOOST_TEST(plot_svg(pareto_plot(report)).find("class=\"whisker\"") != std::string::npos);
  BOOST_TEST((sensitivity_axes(report) == std::vector<std::string>{"latency"}));
  // Of the best: those of 12 micro-batches.
  for (const PlotSeries& series : sensitivity_plot(report, "latency").series) {
    for (const PlotPoint& point : series.points) {
      const char* const latency = point.x == 0 ? "0" : "300us";
      const auto row = std::ranges::find_if(report.rows, [&](const SweepRow& each) {
        return each.schedule == series.name && each.micro_batches == 12 && each.values[0] == latency;
      });
      BOOST_TEST(point.y == static_cast<double>(row->step) * 1e-6 / 12);
      BOOST_TEST(point.range.value().low == static_cast<double>(row->draws->step.low) * 1e-6 / 12);
      BOOST_TEST(point.range->high == static_cast<double>(row->draws->step.high) * 1e-6 / 12);
    }
  }
}

// A number of micro-batches that nothing fits with has no place on the axis.
BOOST_AUTO_TEST_CASE(lines_have_ticks_where_they_have_points) {
  SweepGrid grid = drawn_grid();
  grid.axes = {{"memory-limit", {"1000microbatches", "4microbatches"}}};
  grid.schedules = {"gpipe"};
  grid.micro_batches = {4, 8, 1001};
  const Plot plot = lines_plot(reported(grid));
  BOOST_TEST((plot.x_names == std::vector<std::string>{"4", "8"}));
  BOOST_TEST(plot.note == "");
  grid.micro_batches = {1001, 1002};
  const Plot none = lines_plot(reported(grid));
  BOOST_TEST((none.x_names == std::vector<std::string>{"1001", "1002"}));
  BOOST_TEST(none.note == "none of them fits");
}

// What does not fit is there, and no part of the front, though it would be the best.
BOOST_AUTO_TEST_CASE(the_front_is_of_what_fits) {
  SweepGrid grid = drawn_grid();
  grid.axes = {{"memory-limit", {"5MiB"}}};
  grid.schedules = {"1f1b", "zb1p", "zb-h2"};  // of 4, 4 and 7 activations
  grid.micro_batches = {12};
  const SweepReport report = reported(grid);
  const Plot plot = pareto_plot(report);
  BOOST_TEST_REQUIRE(plot.series.size() == 3U);
  BOOST_TEST(plot.series[0].name == "what does not fit");
  BOOST_TEST(plot.series[0].is_faint);
  BOOST_TEST_REQUIRE(plot.series[0].points.size() == 1U);
  BOOST_TEST(plot.series[0].points[0].text.starts_with("zb-h2"));
  BOOST_TEST(plot.series[1].points.size() == 2U);
  BOOST_TEST_REQUIRE(plot.series[2].points.size() == 1U);
  BOOST_TEST(plot.series[2].points[0].text.starts_with("zb1p"));
  BOOST_TEST(plot.series[0].points[0].y < plot.series[2].points[0].y);
  for (const PlotPoint& point : plot.series[1].points) BOOST_TEST(point.label == "");
  BOOST_TEST(plot_svg(plot).find(">zb1p</text>") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(draws_that_are_missing_are_refused) {
  const Scratch scratch;
  const Sweep sweep(drawn_grid());
  write_sweep_file(scratch / "sweep.jsonl", sweep, {});
  std::string text = bytes_of(scratch / "sweep.jsonl");
  const std::size_t at = text.find("\"stages\"", text.find("{\"point\":5,"));
  text.replace(at, text.find('\n', at) - at, "\"left_out\":\"no\"}");
  std::ofstream(scratch / "torn.jsonl") << text;
  BOOST_TEST(refusal([&] {
               (void)load_sweep_report({scratch / "torn.jsonl"});
             }).find("not with each of the 30 seeds") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
