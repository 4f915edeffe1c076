#include "dualpipe/sim/report/gantt_svg.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <regex>
#include <sstream>
#include <string_view>
#include <tuple>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

std::string svg_of(const Program& program, const Costs& costs, const SvgOptions& options = {}) {
  std::ostringstream out;
  write_gantt_svg(out, program, costs, simulate(program, costs), options);
  return out.str();
}

std::string svg_of(std::string_view family, const Shape& shape, const Costs& costs, const SvgOptions& options = {}) {
  return svg_of(lower(generate(family, shape)), costs, options);
}

bool has(const std::string& svg, std::string_view text) { return svg.find(text) != std::string::npos; }

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
  BOOST_TEST(count(svg, R"(class="n1[01]")") == static_cast<std::ptrdiff_t>(program.schedule.ops.size()));  // numbers
  BOOST_TEST(count(svg, "class=\"rank\"") == 4);
  BOOST_TEST(svg.find("<title>(0F3;7B1)OVERLAP_F_B, rank 0\n7 ms to 9 ms (2 ms)</title>") != std::string::npos);
  BOOST_TEST(svg.find("makespan 22 ms · idle 4.55% of it") != std::string::npos);
  for (const char* tick : {">0<", ">5 ms<", ">10 ms<", ">15 ms<", ">20 ms<"}) {
    BOOST_TEST(svg.find(tick) != std::string::npos);
  }
}

// x is 72 + 640 * time / 18 ms: 2F0 starts at 2 ms.
BOOST_AUTO_TEST_CASE(boxes_stand_where_their_times_say) {
  const std::string svg = svg_of("1f1b", {3, 4}, uniform(ms, ms, ms));
  BOOST_TEST(count(svg, R"(<title>2F0, rank 2\n2 ms to 3 ms \(1 ms\)</title><rect class="op F0" x="143.11" y="124")") ==
             1);
}

// Only what occurs is explained, and the stages of every shade.
BOOST_AUTO_TEST_CASE(legend) {
  const std::string plain = svg_of("1f1b", {2, 2}, uniform(ms, ms, ms));
  BOOST_TEST(count(plain, ">F forward<|>B backward \\(full\\)<|>idle<") == 3);
  BOOST_TEST(count(plain, "I input gradient|W weight gradient|F&amp;B pair|>stage|>message<|>memory") == 0);
  const std::string two_way = svg_of("dualpipe", {2, 4}, uniform(ms, ms, ms));
  BOOST_TEST(count(two_way, ">I input gradient<|>W weight gradient<|>F&amp;B pair<") == 3);
  BOOST_TEST(count(two_way, ">stages 0–1 \\(chain 0\\)<|>stages 2–3 \\(chain 1\\)<") == 2);
  const std::string three = svg_of("interleaved", {2, 4, 3}, uniform(ms, ms, ms));
  BOOST_TEST(count(three, ">stages 0–1<|>stages 2–3<|>stages 4–5<") == 3);
  // More chunks than shades: the first and the second share one.
  BOOST_TEST(has(svg_of("interleaved", {2, 4, 7}, uniform(ms, ms, ms)), ">stages 0–3<"));
}

// From the edge of one row to that of the next, where messages take time. The first activation is sent at 1 ms and
// arrives at 1.5 ms: x is 72 + 640 * time / 10 ms.
BOOST_AUTO_TEST_CASE(messages) {
  const std::string svg = svg_of("1f1b", {2, 2}, uniform(ms, ms, ms, ms / 2), {.width = 744});
  BOOST_TEST(has(svg, "makespan 10 ms"), svg);
  BOOST_TEST(has(svg, "<path class=\"message\" d=\"M136 88L168 100"), svg);
  BOOST_TEST(count(svg, "L[0-9.]+ [0-9]+(M|\")") == 4);
  BOOST_TEST(has(svg, ">message<"));
  BOOST_TEST(count(svg_of("1f1b", {2, 2}, uniform(ms, ms, ms)), "class=\"message\"") == 0);
}

// A strip of each rank. Rank 0 of 2 holds two activations at most, rank 1 one: half of the strip's 14 pixels.
BOOST_AUTO_TEST_CASE(memory) {
  Costs costs = uniform(ms, ms, ms);
  const std::string activations = svg_of("1f1b", {2, 4}, costs, {.memory = true});
  BOOST_TEST(malformed(activations) == "");
  BOOST_TEST(count(activations, "class=\"mem\" d=") == 2);
  BOOST_TEST(has(activations, "<title>rank 0 holds 2 activations at most</title>"));
  BOOST_TEST(has(activations, "<title>rank 1 holds 1 activation at most</title>"));
  BOOST_TEST(has(activations, ">memory, full height: 2 activations<"));
  BOOST_TEST(count(activations, "class=\"mem\" d=\"M72 104H72v-7H[0-9.]+v-7") == 1);
  BOOST_TEST(count(activations, "class=\"mem\" d=\"M72 154H[0-9.]+v-7H") == 1);
  costs.stages[0].activation = 3 << 20;
  BOOST_TEST(has(svg_of("1f1b", {2, 4}, costs, {.memory = true}), ">memory, full height: 6 MiB<"));
  BOOST_TEST(count(svg_of("1f1b", {2, 4}, costs), "class=\"mem\"|>memory") == 0);
}

BOOST_AUTO_TEST_CASE(a_rank_of_its_own_speed_says_so) {
  Costs costs = uniform(ms, ms, ms);
  costs.speed = {1, 0.9, 1};
  const std::string svg = svg_of("1f1b", {3, 4}, costs);
  BOOST_TEST(count(svg, ">rank 1, speed 0.9<") == 1);
  BOOST_TEST(count(svg, ">rank [02]<") == 2);
  costs.speed = {0.9, 0.9, 0.9};  // none is slower than the others
  BOOST_TEST(count(svg_of("1f1b", {3, 4}, costs), ", speed") == 0);
  // Where only some ranks are labelled, it is among them.
  costs.speed.assign(200, 1);
  costs.speed[101] = 1.25;
  const std::string many = svg_of("1f1b", {200, 4}, costs);
  BOOST_TEST(has(many, ">rank 101, speed 1.25<"));
  BOOST_TEST(!has(many, ">rank 100<"));
  BOOST_TEST(!has(many, ">rank 102<"));
  BOOST_TEST(has(many, ">rank 98<"));
}

BOOST_AUTO_TEST_CASE(width_and_title) {
  const std::string svg = svg_of("1f1b", {3, 4}, uniform(ms, ms, ms), {.width = 1280, .title = "ours & <theirs>"});
  BOOST_TEST(has(svg, "viewBox=\"0 0 1280 "));
  BOOST_TEST(has(svg, " width=\"1280\" "));
  BOOST_TEST(count(svg, ">ours &amp; &lt;theirs&gt;(<|, 3 ranks<)") == 2);
  BOOST_TEST(malformed(svg) == "");
}

// What the window cuts is drawn in part; what it has not is not there.
BOOST_AUTO_TEST_CASE(window) {
  const SvgOptions options{.width = 744, .window = Span{4 * ms, 9 * ms}};
  const std::string svg = svg_of("1f1b", {3, 4}, uniform(ms, ms, ms), options);
  BOOST_TEST(has(svg, "from 4 ms to 9 ms</text>"));
  BOOST_TEST(has(svg, R"(<title>2B0, rank 2
3 ms to 5 ms (2 ms)</title><rect class="op B0" x="72" y="124" width="128")"));
  BOOST_TEST(count(svg, "<title>2F0") == 0);
  BOOST_TEST(count(svg, "class=\"tick\" [^>]*>(4|9) ms<") == 2);
  BOOST_TEST(refusal([] {
               (void)svg_of("1f1b", {3, 4}, uniform(ms, ms, ms), {.window = Span{18 * ms, 20 * ms}});
             }) == "it begins at 18 ms, and the run ends at 18 ms");
}

// Two digits get smaller to fit; where they do not, no op of the pass has a number, not even those of one digit.
BOOST_AUTO_TEST_CASE(numbers_of_all_ops_of_a_pass_or_of_none) {
  const Costs costs = uniform(ms, ms, ms);
  for (const auto& [width, forwards, font] : {std::tuple{1280, 12, "n11"}, {640, 12, "n10"}, {400, 0, ""}}) {
    const std::string svg = svg_of("1f1b", {1, 12}, costs, {.width = width});
    BOOST_TEST_CONTEXT(width) {
      BOOST_TEST(count(svg, R"(class="op F0"[^>]*/><text)") == forwards);
      BOOST_TEST(count(svg, R"(class="op B0"[^>]*/><text)") == 12);
      if (forwards > 0) BOOST_TEST(count(svg, std::string("F0\"[^>]*/><text class=\"") + font) == forwards);
    }
  }
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

// Boxes, stripes, bands: in each all colours are in the legend.
BOOST_AUTO_TEST_CASE(less_detail_where_there_is_less_room) {
  const Costs costs = uniform(ms, ms, ms, 0, 2 * ms);
  const std::string boxes = svg_of("dualpipe", {8, 20}, costs, {.width = 1280});
  const std::string stripes = svg_of("dualpipe", {16, 240}, costs, {.width = 2560});
  const std::string bands = svg_of("dualpipe", {16, 480}, costs, {.width = 800});
  for (const std::string* svg : {&boxes, &stripes, &bands}) BOOST_TEST(malformed(*svg) == "");
  BOOST_TEST(count(boxes, "<g>") > 100);
  BOOST_TEST(count(boxes, "class=\"(line )?P\"") == 0);
  BOOST_TEST(count(stripes, "<g>") == 0);
  BOOST_TEST(count(stripes, "<path class=\"line [FBIW][01]\"") >= 16 * 4);
  BOOST_TEST(count(stripes, "<path class=\"line P\"") == 16);
  BOOST_TEST(count(stripes, "<rect class=\"P\"") == 1);  // the legend's
  BOOST_TEST(count(bands, "<path class=\"[FBIW][01]\"") >= 16 * 4);
  BOOST_TEST(count(bands, "<path class=\"P\"") == 16);
  BOOST_TEST(count(bands, "<rect class=\"P\"") == 1);
  BOOST_TEST(has(bands, ">heights are shares of the time there<"));
  BOOST_TEST(!has(stripes, ">heights are shares"));
}

// Under random durations no piece of a row is as the next.
BOOST_AUTO_TEST_CASE(large_schedules_stay_small_files) {
  Costs costs = uniform(ms, 2 * ms, 3 * ms, 0, 4 * ms);
  costs.jitter = 0.5;
  for (const auto& [family, shape] :
       {std::pair("dualpipe", Shape{16, 2048}), {"zb1p", Shape{1000, 1000}}, {"interleaved", Shape{64, 512, 4}}}) {
    const Program program = lower(generate(family, shape));
    for (const int width : {800, 2560}) {
      const std::string svg = svg_of(program, costs, {.width = width, .memory = true});
      BOOST_TEST(malformed(svg) == "");
      BOOST_TEST(svg.size() < 1'000'000U);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
