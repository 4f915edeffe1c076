#include "dualpipe/sim/report/gantt.h"

#include <boost/test/unit_test.hpp>
#include <regex>
#include <sstream>

#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

std::string gantt_of(std::string_view family, const Shape& shape, const Costs& costs, const GanttOptions& options) {
  const Program program = lower(generate(family, shape));
  return gantt(program, simulate(program, costs), options);
}

std::string without_escapes(const std::string& text) {
  static const std::regex escape("\x1b\\[[0-9;]*m");
  return std::regex_replace(text, escape, "");
}

std::size_t longest_line(const std::string& text) {
  std::istringstream in(text);
  std::size_t longest = 0;
  for (std::string line; std::getline(in, line);) longest = std::max(longest, display_width(line));
  return longest;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_gantt)

BOOST_AUTO_TEST_CASE(a_cell_per_unit) {
  BOOST_TEST(gantt_of("1f1b", {3, 4}, uniform(ms, ms, ms), {80}) ==
             "time    |0             |5 ms          |10 ms         |15 ms\n"
             "rank 0  F0 F1 F2 .  .  .  .  B0 -- F3 B1 -- .  B2 -- .  B3 --\n"
             "rank 1  .  F0 F1 .  .  B0 -- F2 B1 -- F3 B2 -- .  B3 -- .  .\n"
             "rank 2  .  .  F0 B0 -- F1 B1 -- F2 B2 -- F3 B3 -- .  .  .  .\n"
             "        F forward   B backward (full)   -- goes on   . idle   one cell: 1 ms\n");
}

// The drawing in gantt.h.
BOOST_AUTO_TEST_CASE(pairs_and_a_second_chain) {
  BOOST_TEST(gantt_of("dualpipe", {4, 8}, uniform(ms, ms, ms, 0, 2 * ms), {80}) ==
             "time    |0             |5 ms          |10 ms         |15 ms         |20 ms\n"
             "rank 0  F0 F1 F2 f0 i0 w0 f1 F3&b1 .  f2&B0 b2 -- f3&B1 b3 -- I2 W2 I3 W3\n"
             "rank 1  .  F0 f0 F1 f1 F2 b0 -- f2&B0 F3&b1 f3&B1 b2 -- B2 -- i3 I3 w3 W3\n"
             "rank 2  .  f0 F0 f1 F1 f2 B0 -- F2&b0 f3&B1 F3&b1 B2 -- b2 -- I3 i3 W3 w3\n"
             "rank 3  f0 f1 f2 F0 I0 W0 F1 f3&B1 .  F2&b0 B2 -- F3&b1 B3 -- i2 w2 i3 w3\n"
             "        F forward   B backward (full)   I input gradient   W weight gradient\n"
             "        F&B pair   -- goes on   . idle   lower case: second chain\n"
             "        one cell: 1 ms\n");
}

// Four chains, two of which are in lower case.
BOOST_AUTO_TEST_CASE(more_chains_than_cases) {
  const std::string text =
      gantt_of("chimera", {.ranks = 4, .micro_batches = 4, .replicas = 2}, uniform(ms, ms, ms), {60});
  BOOST_TEST(text.find("lower case: every other stage of the rank") != std::string::npos, text);
}

BOOST_AUTO_TEST_CASE(stages_where_there_is_room) {
  BOOST_TEST(
      gantt_of("dualpipev", {2, 4}, uniform(ms, ms, ms, 0, 2 * ms), {120}) ==
      "time    |0                  |5 ms               |10 ms              |15 ms              |20 ms\n"
      "rank 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3&3B1 .   3F2&0B0 3B2 --- 3F3&0B1 3B3 --- 0I2 0W2 0I3 0W3\n"
      "rank 1  .   1F0 2F0 1F1 2F1 1F2 2B0 --- 2F2&1B0 1F3&2B1 2F3&1B1 2B2 --- 1B2 --- 2I3 1I3 2W3 1W3\n"
      "        F forward   B backward (full)   I input gradient   W weight gradient   F&B pair   -- goes on   . idle\n"
      "        0F1: stage 0, micro-batch 1   one cell: 1 ms\n");
}

// 100 columns hold 66 units of a pair's three, one column each: letters, and labels where they fit.
BOOST_AUTO_TEST_CASE(dense) {
  const std::string text = gantt_of("dualpipe", {8, 20}, uniform(ms, ms, ms, 0, 3 * ms), {100});
  BOOST_TEST(text.find("rank 0  FFFFFFFfiwfiwfiwf&--...&--&--&--&--&--b6.&--b7.&--b8.&--b9IWIWIWIW\n") !=
             std::string::npos);
  BOOST_TEST(text.find("one column: 1 ms") != std::string::npos);
}

// 12.5 ms in 42 columns, each of which is as long as no op.
BOOST_AUTO_TEST_CASE(scaled) {
  BOOST_TEST(gantt_of("1f1b", {2, 3}, uniform(1'030'000, ms, 1'100'000, 7'001), {50}) ==
             "time    |0              |5 ms            |10 ms\n"
             "rank 0  F0-F1--.......B0-----F2--B1-----...B2-----\n"
             "rank 1  ...F0-B0-----F1--B1-----.F2--B2-----......\n"
             "        F forward   B backward (full)   - goes on\n"
             "        . idle   one column: about 298.8 µs\n"
             "        a row keeps its shares of each\n");
}

// More than one op in a column: none shows, and all have their share of the row.
BOOST_AUTO_TEST_CASE(below_a_column_per_op) {
  const std::string text = gantt_of("zb1p", {4, 64}, uniform(ms, ms, ms), {72});
  const std::string row = "rank 2  FFIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIFWIWW";
  BOOST_TEST(text.find("\n" + row.substr(0, 7)) != std::string::npos);
  BOOST_TEST(text.find("a row keeps its shares of each") != std::string::npos);
}

// One letter per column, and none of what readers of ASCII alone, and programs, would stumble over.
BOOST_AUTO_TEST_CASE(letters) {
  const GanttOptions options{.width = 80, .letters = true};
  BOOST_TEST(gantt_of("dualpipe", {4, 8}, uniform(ms, ms, ms, 0, 2 * ms), options) ==
             "time    |0             |5 ms          |10 ms         |15 ms         |20 ms\n"
             "rank 0  F--F--F--F--I--W--F--&-----...&-----B-----&-----B-----I--W--I--W--\n"
             "rank 1  ...F--F--F--F--F--B-----&-----&-----&-----B-----B-----I--I--W--W--\n"
             "rank 2  ...F--F--F--F--F--B-----&-----&-----&-----B-----B-----I--I--W--W--\n"
             "rank 3  F--F--F--F--I--W--F--&-----...&-----B-----&-----B-----I--W--I--W--\n"
             "        F forward   B backward (full)   I input gradient   W weight gradient\n"
             "        & F&B pair   - goes on   . idle   one cell: 1 ms\n");
}

// Ops that the window cuts are there in part, and ticks count from the start of the run.
BOOST_AUTO_TEST_CASE(window) {
  const GanttOptions options{.width = 80, .window = Span{5 * ms, 11 * ms}};
  BOOST_TEST(gantt_of("1f1b", {3, 4}, uniform(ms, ms, ms), options) ==
             "time    |5 ms\n"
             "rank 0  .  .  B0 -- F3 B1\n"
             "rank 1  B0 -- F2 B1 -- F3\n"
             "rank 2  F1 B1 -- F2 B2 --\n"
             "        F forward   B backward (full)   -- goes on   . idle   one cell: 1 ms\n");
  const Program program = lower(generate("1f1b", {3, 4}));
  const Timeline timeline = simulate(program, uniform(ms, ms, ms));
  BOOST_TEST(refusal([&] {
               (void)gantt(program, timeline, {.window = Span{18 * ms, 20 * ms}});
             }) == "it begins at 18 ms, and the run ends at 18 ms");
}

// Whatever the durations, no line is wider than asked, and every rank has its row.
BOOST_AUTO_TEST_CASE(never_wraps) {
  Random random(4);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    const Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency, true);
    const Timeline timeline = simulate(program, costs);
    for (const int width : {60, 80, 133}) {
      const std::string text = gantt(program, timeline, {width});
      BOOST_TEST_CONTEXT(each << ", width " << width << "\n" << text) {
        BOOST_TEST(longest_line(text) <= static_cast<std::size_t>(width));
        for (int rank = 0; rank < each.shape.ranks; ++rank) {
          BOOST_TEST(text.find("\nrank " + std::to_string(rank)) != std::string::npos);
        }
      }
    }
  }
}

// Colour adds escapes, and nothing else; each is closed on its line.
BOOST_AUTO_TEST_CASE(colour_only_adds) {
  const Costs costs = uniform(ms, ms, ms, 0, 2 * ms);
  for (const int width : {40, 80, 120}) {
    const std::string colored = gantt_of("dualpipe", {4, 8}, costs, {width, true});
    const std::string plain = gantt_of("dualpipe", {4, 8}, costs, {width});
    BOOST_TEST(colored != plain);
    // Plain lines have no blanks at their ends.
    BOOST_TEST(std::regex_replace(without_escapes(colored), std::regex(" +\n"), "\n") == plain);
    std::istringstream in(colored);
    for (std::string line; std::getline(in, line);) {
      const auto last = line.rfind("\x1b[");
      if (last != std::string::npos) BOOST_TEST(line.compare(last, 4, "\x1b[0m") == 0);
    }
  }
  const std::string plain_colors = gantt_of("1f1b", {1, 1}, costs, {60, true});
  BOOST_TEST(plain_colors.find("\x1b[38;5;16;48;5;39mF0 \x1b[0m") != std::string::npos);
  BOOST_TEST(plain_colors.find("\x1b[38;5;16;48;5;39mF\x1b[0m forward") != std::string::npos);  // the legend, too
  // F&B has a colour of its own.
  const std::string pairs = gantt_of("dualpipe", {4, 8}, costs, {80, true});
  BOOST_TEST(pairs.find("\x1b[38;5;16;48;5;227mF3&b1 \x1b[0m") != std::string::npos);
  BOOST_TEST(pairs.find("\x1b[38;5;16;48;5;227mF&B\x1b[0m pair") != std::string::npos);
}

// Columns of 10, of 9 F, 20 B and 11 idle time: 1, 2 and 1 of them, in the order in which the units run.
BOOST_AUTO_TEST_CASE(what_fills_a_column) {
  const Op forward{};
  const Op backward{0, 0, Kind::backward};
  const std::span<const Op> f(&forward, 1);
  const std::span<const Op> b(&backward, 1);
  const std::vector<detail::report::Unit> units{{f, {0, 5}, 0}, {b, {5, 15}, 1}, {f, {26, 30}, 2}, {b, {30, 40}, 3}};
  const std::vector<std::optional<std::size_t>> expected{0, 1, std::nullopt, 3};
  std::vector<std::optional<std::size_t>> shown;
  for (const auto& column : detail::report::fill({{0, 40}, 4}, units)) shown.push_back(column.unit);
  BOOST_TEST((shown == expected));
}

BOOST_AUTO_TEST_CASE(nothing_takes_time) {
  BOOST_TEST(gantt_of("1f1b", {2, 1}, uniform(0, 0, 0), {60}) ==
             "time\n"
             "rank 0\n"
             "rank 1\n"
             "        F forward   B backward (full)   . idle\n");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
