// What the charts and the trace of an explanation show is what it says.
#include <algorithm>
#include <array>
#include <boost/test/unit_test.hpp>
#include <map>
#include <regex>
#include <sstream>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "dualpipe/sim/trace/run_reader.h"
#include "tests/support.h"
#include "tests/thinned.h"
#include "tests/trace/perfetto.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

struct Run {
  Program program;
  Costs costs;
  Timeline timeline;
  Explanation explanation;
};

Run run_of(Program program, const Costs& costs) {
  Run run{std::move(program), costs, {}, {}};
  run.timeline = simulate(run.program, costs);
  run.explanation = explain(run.program, costs, run.timeline);
  return run;
}

Run run_of(std::string_view family, const Shape& shape, const Costs& costs) {
  return run_of(lower(generate(family, shape)), costs);
}

Run slow_rank() {
  Costs costs = uniform(1 * ms, 1 * ms, 1 * ms, ms / 2);
  costs.speed = {1, 1, 0.5, 1};
  return run_of("zb1p", {4, 8}, costs);
}

std::string svg_of(const Run& run, SvgOptions options = {}) {
  options.explanation = &run.explanation;
  std::ostringstream out;
  write_gantt_svg(out, run.program, run.costs, run.timeline, options);
  return out.str();
}

std::string trace_of(const Run& run, const TraceFilter& filter = {}) {
  const TracedRun traced{.program = run.program,
                         .costs = run.costs,
                         .timeline = run.timeline,
                         .explanation = &run.explanation,
                         .has_messages = !run.timeline.communication.empty()};
  std::ostringstream out;
  write_chrome_trace(out, std::span(&traced, 1), filter);
  return out.str();
}

std::ptrdiff_t count(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  return std::distance(std::sregex_iterator(text.begin(), text.end(), regex), std::sregex_iterator());
}

std::ptrdiff_t ops_on_path(const Run& run) {
  return std::ranges::count_if(run.explanation.path, [](const PathStep& step) {
    return step.kind == PathStep::Kind::op && step.span.end > step.span.start;
  });
}

template <typename Check>
void for_each_run(Check check) {
  Random random(3);
  const auto cases = small_cases(4, 8);
  constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                           CommunicationModel::stream};
  Thinned runs(7);
  for (int i = 0; i < 60; ++i) {
    const Case& each = cases[static_cast<std::size_t>(random.between(0, std::ssize(cases) - 1))];
    const Program program = lower(generate(each.family, each.shape));
    const CommunicationModel model = models[random.between(0, 2)];
    const Costs costs = random_run_costs(random, program.schedule.placement, model);
    if (!runs.next()) continue;
    BOOST_TEST_CONTEXT("run " << i << ", " << each << ", " << model) { check(run_of(program, costs)); }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(explain_charts)

// Written down by hand: F, I and W 2 ms, a message 1 ms. Rank 1 runs F 0 from 3 to 5 ms, I 0 to 7 ms; so rank 0, idle
// from 4 to 8 ms, waits for an op that stood before I 0, for I 0, and for the message.
BOOST_AUTO_TEST_CASE(text_marks_causes_and_the_path) {
  const Run run = run_of("zb1p", {2, 3}, uniform(2 * ms, 2 * ms, 2 * ms, 1 * ms));
  GanttOptions options;
  options.width = 80;
  options.explanation = &run.explanation;
  BOOST_TEST(gantt(run.program, run.timeline, options) ==
             "time    |0        |5 ms     |10 ms    |15 ms    |20 ms\n"
             "rank 0  F0- F1- < : : ~ I0- W0- F2- I1- W1- : ~ I2- W2-\n"
             "        ^^^^            ^^^^^^^^^^^^            ^^^^^^^^\n"
             "rank 1  ' ' ~ F0- I0- F1- I1- W0- ' ~ F2- I2- W1- W2- .\n"
             "              ^^^^^^^^                ^^^^^^^^\n"
             "        F forward   I input gradient   W weight gradient   -- goes on\n"
             "        ' F elsewhere   : I elsewhere   < order   ~ transfer   . drain\n"
             "        ^ critical path   one cell: 1 ms\n");
}

// Of each row so many columns show a cause as its share of the row has, and each column is on the path in one row.
BOOST_AUTO_TEST_CASE(columns_are_shares_of_causes) {
  for_each_run([](const Run& run) {
    using detail::report::class_count;
    const detail::report::Chart chart(run.program, run.timeline, std::nullopt, &run.explanation);
    if (chart.length() == 0) return;
    const detail::report::Columns columns{chart.window, 97};
    for (std::size_t rank = 0; rank < chart.units.size(); ++rank) {
      std::array<double, class_count> shown{};
      for (const auto& each : fill(columns, chart.units[rank], chart.idle[rank])) shown[each.shown_class] += 1;
      BOOST_TEST(shown[detail::report::idle_class] == 0);  // all of it has a cause
      std::array<double, class_count> due{};
      for (const IdleSegment& segment : chart.idle[rank]) {
        due[detail::report::class_of(segment.cause)] += static_cast<double>(segment.span.end - segment.span.start) *
                                                        columns.count / static_cast<double>(chart.length());
      }
      for (std::size_t each = detail::report::idle_class; each < class_count; ++each) {
        BOOST_TEST(std::abs(shown[each] - due[each]) < 1);
      }
    }
    GanttOptions options;
    options.width = 105;
    options.letters = true;
    options.explanation = &run.explanation;
    std::istringstream lines(gantt(run.program, run.timeline, options));
    std::map<std::size_t, int> marked;
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" ^") != line.npos) continue;
      for (std::size_t at = line.find('^'); at != line.npos; at = line.find('^', at + 1)) ++marked[at];
    }
    for (const auto& [column, rows] : marked) BOOST_TEST(rows == 1);
    BOOST_TEST((ops_on_path(run) == 0 || !marked.empty()));
  });
}

BOOST_AUTO_TEST_CASE(picture_has_each_piece_with_its_cause) {
  const Run run = slow_rank();
  const std::string svg = svg_of(run);
  std::map<Cause, std::ptrdiff_t> pieces;
  for (const IdleSegment& segment : run.explanation.segments) ++pieces[segment.cause];
  BOOST_TEST(pieces.size() > 3);
  for (const auto& [cause, number] : pieces) {
    const std::string fill = "C" + std::to_string(static_cast<int>(cause));
    BOOST_TEST(count(svg, "<rect class=\"" + fill + "\"[^>]*><title>rank \\d idle: " + std::string(name(cause))) ==
               number);
    BOOST_TEST(count(svg, "idle: " + std::string(name(cause)) + "</text>") == 1);
    BOOST_TEST(count(svg, "<pattern id=\"" + fill + "\"") == 1);
  }
  BOOST_TEST(count(svg, "critical path</text>") == 1);
  std::smatch path;
  BOOST_REQUIRE(std::regex_search(svg, path, std::regex("<path class=\"path\" d=\"([^\"]*)\"")));
  BOOST_TEST(count(path[1].str(), "z") == ops_on_path(run));
}

BOOST_AUTO_TEST_CASE(picture_without_an_explanation_has_none) {
  const Run run = slow_rank();
  std::ostringstream out;
  write_gantt_svg(out, run.program, run.costs, run.timeline);
  BOOST_TEST(count(out.str(), "critical|class=\"C\\d|\\.path") == 0);
}

BOOST_AUTO_TEST_CASE(pictures_of_large_runs_stay_small) {
  for (const auto& [ranks, micro_batches] : {std::pair(16, 128), {64, 512}, {256, 600}}) {
    Random random(5);
    const Program program = lower(generate("zb1p", {ranks, slow ? micro_batches / 4 : micro_batches}));
    const std::string svg =
        svg_of(run_of(program, random_costs(random, program.schedule.placement, CommunicationModel::latency)));
    BOOST_TEST(svg.size() < 1'000'000U);
    BOOST_TEST(count(svg, "class=\"path\" d=") == 1);
    BOOST_TEST(count(svg, "<path class=\"C\\d+\"") > 0);
  }
}

BOOST_AUTO_TEST_CASE(trace_has_causes_and_an_arrow_along_the_path) {
  for_each_run([](const Run& run) {
    const std::string text = trace_of(run);
    const perfetto::Trace trace(text);
    std::map<std::string, Time> expected;
    for (const IdleSegment& segment : run.explanation.segments) {
      expected[std::string(name(segment.cause))] += segment.span.end - segment.span.start;
    }
    std::map<std::string, Time> shown;
    for (int rank = 0; rank < run.program.schedule.ranks(); ++rank) {
      for (const auto& slice : trace.in_lane(rank, "idle")) shown[slice.name] += slice.span.end - slice.span.start;
    }
    BOOST_TEST((shown == expected));
    const auto path = trace.in_row("critical path");
    BOOST_TEST(path.size() == run.explanation.path.size());
    for (std::size_t i = 1; i < path.size(); ++i) BOOST_TEST(path[i].span.start == path[i - 1].span.end);
    const auto arrows = [](const std::string& in) { return count(in, R"("ph":"s"[^\n]*"cat":"critical path")"); };
    BOOST_TEST(arrows(text) == std::max<std::ptrdiff_t>(ops_on_path(run) - 1, 0));

    std::istringstream in(text);
    const auto runs = read_chrome_trace(in, "trace");
    BOOST_REQUIRE(runs.size() == 1U);
    std::vector<Op> ops;
    for (const TraceRank& rank : runs[0].ranks) ops.insert(ops.end(), rank.ops.begin(), rank.ops.end());
    BOOST_TEST((ops == run.program.schedule.ops));
  });
}

// Slack is that of the explanation, and 0 on the path.
BOOST_AUTO_TEST_CASE(trace_has_slack) {
  const Run run = slow_rank();
  const perfetto::Trace trace(trace_of(run));
  std::size_t i = 0;
  for (int rank = 0; rank < 4; ++rank) {
    for (const auto& slice : trace.in_lane(rank, "compute")) {
      BOOST_TEST(slice.args["slack_ns"].get<Time>() == run.explanation.slack[i++]);
    }
  }
  BOOST_TEST(i == run.program.schedule.ops.size());
}

// Of a part of the ranks and of the time there is what both ends are written of.
BOOST_AUTO_TEST_CASE(trace_of_a_part) {
  const Run run = slow_rank();
  const TraceFilter filter{.first_rank = 1, .last_rank = 2, .begin = 3 * ms, .end = 20 * ms};
  const perfetto::Trace trace(trace_of(run, filter));
  BOOST_TEST(trace.in_row("rank 00 idle").empty());
  BOOST_TEST(!trace.in_row("rank 01 idle").empty());
  for (const auto& slice : trace.in_row("critical path")) {
    const int rank = slice.args["on_rank"].get<int>();
    BOOST_TEST((rank == 1 || rank == 2));
  }
}

// A measured run knows nothing of messages: the trace has its ops and causes all the same.
BOOST_AUTO_TEST_CASE(a_measured_run_without_messages) {
  Run run = slow_rank();
  run.timeline.communication.clear();
  run.explanation = explain_measured(run.program, run.timeline);
  const perfetto::Trace trace(trace_of(run));
  BOOST_TEST(trace.in_row("rank 00 send to rank 01").empty());
  BOOST_TEST(!trace.in_row("rank 03 idle").empty());
  BOOST_TEST(count(svg_of(run), "<path class=\"message\"") == 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
