#include "dualpipe/sim/report/gantt.h"

#include <boost/test/unit_test.hpp>
#include <regex>
#include <sstream>

#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
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
             "        F forward   B backward (full)   . idle   one cell: 1 ms\n");
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
             "        F&B pair   . idle   lower case: second chain   one cell: 1 ms\n");
}

BOOST_AUTO_TEST_CASE(stages_where_there_is_room) {
  BOOST_TEST(gantt_of("dualpipev", {2, 4}, uniform(ms, ms, ms, 0, 2 * ms), {120}) ==
             "time    |0                  |5 ms               |10 ms              |15 ms              |20 ms\n"
             "rank 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3&3B1 .   3F2&0B0 3B2 --- 3F3&0B1 3B3 --- 0I2 0W2 0I3 0W3\n"
             "rank 1  .   1F0 2F0 1F1 2F1 1F2 2B0 --- 2F2&1B0 1F3&2B1 2F3&1B1 2B2 --- 1B2 --- 2I3 1I3 2W3 1W3\n"
             "        F forward   B backward (full)   I input gradient   W weight gradient   F&B pair   . idle\n"
             "        0F1: stage 0, micro-batch 1   one cell: 1 ms\n");
}

// 100 columns hold 66 units of a pair's three, one column each: letters, and labels where they fit.
BOOST_AUTO_TEST_CASE(dense) {
  const std::string text = gantt_of("dualpipe", {8, 20}, uniform(ms, ms, ms, 0, 3 * ms), {100});
  BOOST_TEST(text.find("rank 0  FFFFFFFfiwfiwfiwf&--...&--&--&--&--&--b6.&--b7.&--b8.&--b9IWIWIWIW\n") !=
             std::string::npos);
  BOOST_TEST(text.find("one column: 1 ms") != std::string::npos);
}

// 12.5 ms in at most 42 columns: 300 µs each, which divides no op. Column 3, from 900 to 1200 µs, is more F1's than
// F0's.
BOOST_AUTO_TEST_CASE(scaled) {
  BOOST_TEST(gantt_of("1f1b", {2, 3}, uniform(1'030'000, ms, 1'100'000, 7'001), {50}) ==
             "time    |0              |5 ms            |10 ms\n"
             "rank 0  F0-F1--.......B0-----F2-B1-----....B2-----\n"
             "rank 1  ...F0--B0-----F1-B1-----F2--B2-----.......\n"
             "        F forward   B backward (full)   . idle\n"
             "        one column: 300 µs\n");
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
  BOOST_TEST(gantt_of("1f1b", {1, 1}, costs, {60, true}).find("\x1b[38;5;16;48;5;39mF0 \x1b[0m") != std::string::npos);
}

// Columns of 10: [0, 10) has 5 of each, [10, 20) as much idle time as work, [20, 30) more of it.
BOOST_AUTO_TEST_CASE(what_fills_a_column) {
  const Op op{};
  const std::span<const Op> ops(&op, 1);
  const std::vector<detail::report::Unit> units{{ops, {0, 5}, 0}, {ops, {5, 15}, 1}, {ops, {26, 30}, 2}};
  const std::vector<std::optional<std::size_t>> expected{0, 1, std::nullopt};
  BOOST_TEST((detail::report::fill({0, 10, 3}, units) == expected));
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
