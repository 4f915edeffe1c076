#include "dualpipe/sim/report/gantt_svg.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <regex>
#include <sstream>
#include <string_view>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

std::string svg_of(const Program& program, const Costs& costs) {
  std::ostringstream out;
  write_gantt_svg(out, program, simulate(program, costs));
  return out.str();
}

std::string svg_of(std::string_view family, const Shape& shape, const Costs& costs) {
  return svg_of(lower(generate(family, shape)), costs);
}

std::ptrdiff_t count(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  return std::distance(std::sregex_iterator(text.begin(), text.end(), regex), std::sregex_iterator());
}

std::ptrdiff_t unit_count(const Program& program) {
  std::ptrdiff_t units = 0;
  for (const Op op : program.schedule.ops) units += !op.with_next;
  return units;
}

// A '<' or '>', or a '&' that begins no entity.
bool has_bare_mark(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '<' || text[i] == '>') return true;
    if (text[i] != '&') continue;
    const std::string_view rest = text.substr(i);
    const auto begins = [&](const char* entity) { return rest.starts_with(entity); };
    if (!begins("&amp;") && !begins("&lt;") && !begins("&gt;") && !begins("&quot;")) return true;
  }
  return false;
}

// Whether every tag is closed in turn, there is one root, and no mark is bare. Returns what is wrong, or nothing.
std::string malformed(std::string_view xml) {
  std::vector<std::string_view> open;
  int roots = 0;
  std::size_t at = 0;
  while (true) {
    const std::size_t begin = xml.find('<', at);
    if (has_bare_mark(xml.substr(at, begin - at))) return "a bare mark in a text";
    if (begin == std::string_view::npos) break;
    const std::size_t end = xml.find('>', begin);
    if (end == std::string_view::npos) return "a tag without end";
    std::string_view tag = xml.substr(begin + 1, end - begin - 1);
    at = end + 1;
    if (has_bare_mark(tag)) return "a bare mark in a tag";
    if (tag.starts_with('/')) {
      if (open.empty() || open.back() != tag.substr(1)) return "closed out of turn: " + std::string(tag);
      open.pop_back();
      continue;
    }
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) return "a quote too few: " + std::string(tag);
    if (open.empty() && ++roots > 1) return "a second root";
    if (!tag.ends_with('/')) open.push_back(tag.substr(0, tag.find(' ')));
  }
  if (!open.empty()) return "never closed: " + std::string(open.back());
  return roots == 1 ? "" : "no root";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_gantt_svg)

BOOST_AUTO_TEST_CASE(a_box_per_op_and_one_of_two_parts_per_pair) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const std::string svg = svg_of(program, uniform(ms, ms, ms, 0, 2 * ms));
  BOOST_TEST(malformed(svg) == "");
  BOOST_TEST(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 "));
  BOOST_TEST(count(svg, "<g><title>") == unit_count(program));
  BOOST_TEST(count(svg, R"(class="op [FBIW][01]")") == static_cast<std::ptrdiff_t>(program.schedule.ops.size()));
  BOOST_TEST(count(svg, R"(class="pair")") == 12 + 1);  // the legend's too
  BOOST_TEST(count(svg, R"(class="idle")") == 4 + 1);
  BOOST_TEST(count(svg, R"(class="[bh]")") == static_cast<std::ptrdiff_t>(program.schedule.ops.size()));  // numbers
  BOOST_TEST(count(svg, "class=\"rank\"") == 4);
  BOOST_TEST(svg.find("<title>(0F3;7B1)OVERLAP_F_B, rank 0\n7 ms to 9 ms (2 ms)</title>") != std::string::npos);
  BOOST_TEST(svg.find("makespan 22 ms · idle 4.55% of it") != std::string::npos);
  for (const char* tick : {">0<", ">5 ms<", ">10 ms<", ">15 ms<", ">20 ms<"}) {
    BOOST_TEST(svg.find(tick) != std::string::npos);
  }
}

// x is 66 + 640 * time / 18 ms: 2F0 starts at 2 ms.
BOOST_AUTO_TEST_CASE(boxes_stand_where_their_times_say) {
  const std::string svg = svg_of("1f1b", {3, 4}, uniform(ms, ms, ms));
  BOOST_TEST(count(svg, R"(<title>2F0, rank 2\n2 ms to 3 ms \(1 ms\)</title><rect class="op F0" x="138.11" y="124")") ==
             1);
}

// Only what occurs is explained.
BOOST_AUTO_TEST_CASE(legend) {
  const std::string plain = svg_of("1f1b", {2, 2}, uniform(ms, ms, ms));
  BOOST_TEST(count(plain, "F forward|B backward \\(full\\)|>idle<") == 3);
  BOOST_TEST(count(plain, "I input gradient|W weight gradient|F&amp;B pair|paler") == 0);
  const std::string two_way = svg_of("dualpipe", {2, 4}, uniform(ms, ms, ms));
  BOOST_TEST(count(two_way, "I input gradient|W weight gradient|F&amp;B pair|paler: second chain") == 4);
  BOOST_TEST(count(svg_of("interleaved", {2, 4, 2}, uniform(ms, ms, ms)), "paler: later stages") == 1);
}

BOOST_AUTO_TEST_CASE(well_formed_for_every_family) {
  Random random(3);
  for (const Case& each : small_cases(3, 6)) {
    const Program program = lower(generate(each.family, each.shape));
    const std::string svg =
        svg_of(program, random_costs(random, program.schedule.placement, CommunicationModel::latency, true));
    BOOST_TEST(malformed(svg) == "", each << ": " << malformed(svg));
  }
}

BOOST_AUTO_TEST_CASE(names_are_escaped) {
  Program program = lower(generate("1f1b", {2, 2}));
  program.schedule.name = "<a & \"b\">\n\xff\uffff";
  const std::string svg = svg_of(program, uniform(ms, ms, ms));
  BOOST_TEST(malformed(svg) == "");
  BOOST_TEST(svg.find("&lt;a &amp; &quot;b&quot;&gt;?"
                      "?"
                      "?</text>") != std::string::npos);
}

// Ops of no duration have no box; all of them, no axis but its 0.
BOOST_AUTO_TEST_CASE(nothing_takes_time) {
  const std::string svg = svg_of("1f1b", {2, 2}, uniform(0, 0, 0));
  BOOST_TEST(malformed(svg) == "");
  BOOST_TEST(count(svg, "<g>") == 0);
}

BOOST_AUTO_TEST_CASE(large_schedules_stay_moderate) {
  const Costs costs = uniform(ms, ms, ms, 0, 2 * ms);
  const std::string many_ops = svg_of("dualpipe", {16, 2048}, costs);
  BOOST_TEST(malformed(many_ops) == "");
  BOOST_TEST(count(many_ops, "<g>") == 0);
  BOOST_TEST(count(many_ops, "<path class=\"[FBIW][01]\"") >= 16 * 4);
  BOOST_TEST(many_ops.size() < 5'000'000U);
  BOOST_TEST(svg_of("zb1p", {1000, 1000}, uniform(ms, 2 * ms, 3 * ms)).size() < 5'000'000U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
