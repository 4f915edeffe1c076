#include "dualpipe/sim/report/difference.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dualpipe/sim/report/compare.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

// Two runs of one program, and peaks that tell who is who.
struct Pair {
  Program program;
  Timeline planned;
  Timeline measured;

  Pair(std::string_view family, const Shape& shape, const Costs& plan, const Costs& real)
      : program(lower(generate(family, shape))), planned(simulate(program, plan)), measured(simulate(program, real)) {}

  [[nodiscard]] Difference compare() const {
    std::vector<RankPeak> planned_peaks;
    std::vector<RankPeak> measured_peaks;
    for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
      planned_peaks.push_back({10 + rank, 100 + rank});
      measured_peaks.push_back({20 + rank, 200 + rank});
    }
    return dualpipe::compare(run_of("planned", program, planned, planned_peaks),
                             run_of("measured", program, measured, measured_peaks))
        .difference;
  }
};

Causes causes(std::initializer_list<std::pair<Cause, Time>> times) {
  Causes result;
  for (const auto& [cause, time] : times) result.time[static_cast<std::size_t>(cause)] = time;
  return result;
}

void shift(Timeline& timeline, Time by) {
  for (RankTimes& rank : timeline.ranks) {
    rank.first_start += by;
    rank.last_end += by;
  }
  for (Span& span : timeline.ops) span = {span.start + by, span.end + by};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_difference)

// 1F1B, P = 2, M = 2:   rank 0: F0 F1 B0 B1     rank 1: F0 B0 F1 B1
//   planned, F = 1, B = 2:    0-1 1-2 4-6 7-9           1-2 2-4 4-5 5-7     (rank 0: B1 waits for rank 1's, to 7)
//   measured, F = 2, B = 2:   0-2 2-4 6-8 10-12         2-4 4-6 6-8 8-10
// Starts are off by        0 1 2 3              1 2 2 3, of which the median (the lower one) is 2.
// Rank 0 waits for 1B0 and 1B1, from 2 to 4 and 6 to 7, or from 4 to 6 and 8 to 10; rank 1 for 0F0, and at the end 0B1
// runs, for 2 ms in both.
BOOST_AUTO_TEST_CASE(every_figure_of_a_small_pair) {
  const Pair pair("1f1b", {2, 2}, uniform(1 * ms, 1 * ms, 1 * ms), uniform(2 * ms, 1 * ms, 1 * ms));
  const Difference found = pair.compare();
  BOOST_TEST((found.makespan == PlannedMeasured<Time>{9 * ms, 12 * ms}));
  BOOST_TEST(found.classes.size() == 2U);
  BOOST_TEST((found.classes[0] == ClassDifference{"F", 4, {1 * ms, 2 * ms}, {1 * ms, 2 * ms, 2 * ms, "1F1", 1}}));
  BOOST_TEST((found.classes[1] == ClassDifference{"B", 4, {2 * ms, 2 * ms}, {2 * ms, 3 * ms, 3 * ms, "0B1", 0}}));
  BOOST_TEST((found.starts == StartError{2 * ms, 3 * ms, 3 * ms, "0B1", 0}));
  BOOST_TEST(found.per_rank.size() == 2U);
  BOOST_TEST((found.per_rank[1] == RankDifference{1,
                                                  {6 * ms, 8 * ms},
                                                  {3 * ms, 4 * ms},
                                                  {causes({{Cause::forward, 1 * ms}, {Cause::drain, 2 * ms}}),
                                                   causes({{Cause::forward, 2 * ms}, {Cause::drain, 2 * ms}})},
                                                  {RankPeak{11, 101}, RankPeak{21, 201}},
                                                  {2 * ms, 3 * ms, 3 * ms, "1B1", 1}}));
  BOOST_TEST((found.causes == std::vector<CauseDifference>{{Cause::forward, {1 * ms, 2 * ms}},
                                                           {Cause::backward, {3 * ms, 4 * ms}},
                                                           {Cause::drain, {2 * ms, 2 * ms}}}));
}

// The idle time of both runs is that of their causes; so is what one run took more, together with the busy time.
BOOST_AUTO_TEST_CASE(causes_add_up) {
  Random random(3);
  for (const Case& each : small_cases(4, 8)) {
    const Placement placement = generate(each.family, each.shape).placement;
    const Pair pair(each.family, each.shape, random_costs(random, placement, CommunicationModel::latency),
                    random_costs(random, placement, CommunicationModel::links));
    const Difference found = pair.compare();
    BOOST_TEST_CONTEXT(each) {
      Time more = 0;
      for (const CauseDifference& cause : found.causes) more += cause.more();
      for (const RankDifference& rank : found.per_rank) {
        BOOST_TEST(rank.causes.planned.value().total() == rank.idle.planned);
        BOOST_TEST(rank.causes.measured.value().total() == rank.idle.measured);
        more += rank.busy.measured - rank.busy.planned;
      }
      BOOST_TEST(more == (found.makespan.measured - found.makespan.planned) * each.shape.ranks);
      BOOST_TEST(std::ranges::is_sorted(found.causes, std::ranges::greater{}, &CauseDifference::more));
    }
  }
}

// With one micro-batch: planned 0-1 1-2 2-4 4-6, measured 0-2 2-4 4-6 6-8, so off by 0 1 2 2: the lower one of 1 and 2.
BOOST_AUTO_TEST_CASE(of_two_in_the_middle_the_median_is_the_lower) {
  const Pair pair("1f1b", {2, 1}, uniform(1 * ms, 1 * ms, 1 * ms), uniform(2 * ms, 1 * ms, 1 * ms));
  BOOST_TEST(pair.compare().starts.median == 1 * ms);
  BOOST_TEST(pair.compare().starts.largest == 2 * ms);
}

BOOST_AUTO_TEST_CASE(a_run_does_not_differ_from_itself) {
  const Costs costs = uniform(1 * ms, 1 * ms, 1 * ms, 0, 2 * ms);
  for (const std::string_view name : {"1f1b", "zb1p", "dualpipe"}) {
    Pair pair(name, {4, 8}, costs, costs);
    shift(pair.measured, 123 * ms);  // its clock began elsewhere
    const Difference found = pair.compare();
    BOOST_TEST(found.makespan.planned == found.makespan.measured);
    BOOST_TEST(found.starts.median == 0);
    BOOST_TEST(found.starts.largest == 0);
    for (const ClassDifference& each : found.classes) BOOST_TEST((each.median.planned == each.median.measured));
    for (const RankDifference& rank : found.per_rank) {
      BOOST_TEST(rank.busy.planned == rank.busy.measured);
      BOOST_TEST(rank.idle.planned == rank.idle.measured);
    }
  }
}

// A plan in which each of 20 forwards takes 1 ms, and a run in which each takes 2: number i is off by i ms, the 20
// backwards, planned from 20 on at 2 ms each and measured from 40 on at 2 ms, by 20 ms.
// Of 0 … 19 the 19th, and of 0 … 19 and twenty times 20 the 38th, is that which 95% do not exceed.
BOOST_AUTO_TEST_CASE(the_95th_percentile_is_the_least_that_95_percent_do_not_exceed) {
  const Pair pair("gpipe", {1, 20}, uniform(1 * ms, 1 * ms, 1 * ms), uniform(2 * ms, 1 * ms, 1 * ms));
  const Difference found = pair.compare();
  BOOST_TEST((found.classes[0].starts == StartError{9 * ms, 18 * ms, 19 * ms, "0F19", 0}));
  BOOST_TEST((found.starts == StartError{19 * ms, 20 * ms, 20 * ms, "0B0", 0}));
}

// DualPipe's pairs are a class of their own, and count once.
BOOST_AUTO_TEST_CASE(pairs_are_a_class_of_their_own) {
  const Pair pair("dualpipe", {2, 4}, uniform(1 * ms, 1 * ms, 1 * ms, 0, 2 * ms),
                  uniform(1 * ms, 1 * ms, 1 * ms, 0, 3 * ms));
  const Difference found = pair.compare();
  std::size_t ops = 0;
  for (const ClassDifference& each : found.classes) ops += each.op_class == "F&B" ? 2 * each.count : each.count;
  BOOST_TEST(ops == pair.program.schedule.ops.size());
  BOOST_TEST(found.classes.back().op_class == "F&B");
  BOOST_TEST((found.classes.back().median == PlannedMeasured<std::optional<Time>>{2 * ms, 3 * ms}));
  const auto overlap = overlap_of(found);
  BOOST_TEST((overlap->forward == 1 * ms && overlap->backward == 2 * ms && overlap->pair == 3 * ms));
  BOOST_TEST(overlap->share_of_sum() == 1.0);
  const Pair apart("1f1b", {2, 2}, uniform(1 * ms, 1 * ms, 1 * ms), uniform(2 * ms, 1 * ms, 1 * ms));
  BOOST_TEST(!overlap_of(apart.compare()).has_value());
}

BOOST_AUTO_TEST_CASE(text_and_json_have_the_figures) {
  const Pair pair("1f1b", {2, 2}, uniform(1 * ms, 1 * ms, 1 * ms), uniform(2 * ms, 1 * ms, 1 * ms));
  const std::string text = to_text(pair.compare());
  BOOST_TEST(text.find("133.33%") != std::string::npos);  // 12 / 9
  BOOST_TEST(text.find("\nall ranks' time  planned  measured  more\n"
                       "busy               12 ms     16 ms  4 ms\n"
                       "F elsewhere         1 ms      2 ms  1 ms\n") != std::string::npos,
             text);
  BOOST_TEST(text.find("\nall              2 ms  3 ms     3 ms  0B1 of rank 0\n") != std::string::npos);
  BOOST_TEST(text.find("\nrank 1           2 ms  3 ms     3 ms  1B1\n") != std::string::npos);

  std::ostringstream out;
  write_json(out, pair.compare());
  const auto json = nlohmann::json::parse(out.str());
  BOOST_TEST(json["planned_makespan_ns"] == 9 * ms);
  BOOST_TEST(json["measured_makespan_ns"] == 12 * ms);
  BOOST_TEST(json["classes"][0]["class"] == "F");
  BOOST_TEST(json["classes"][0]["measured_median_ns"] == 2 * ms);
  BOOST_TEST(json["start_error"]["largest_at"] == "0B1");
  BOOST_TEST(json["start_error"]["percentile95_ns"] == 3 * ms);
  BOOST_TEST(json["classes"][0]["start_error"]["largest_at"] == "1F1");
  BOOST_TEST(json["per_rank"][1]["start_error"]["median_ns"] == 2 * ms);
  BOOST_TEST(json["per_rank"][1]["measured_idle_ns"] == 4 * ms);
  BOOST_TEST(json["causes"][0]["cause"] == "F elsewhere");
  BOOST_TEST(json["causes"][0]["measured_ns"] == 2 * ms);
  BOOST_TEST(json["per_rank"][1]["planned_causes"][1]["cause"] == "drain");
  BOOST_TEST(json["per_rank"][1]["planned_causes"][1]["ns"] == 2 * ms);
  BOOST_TEST(json["per_rank"][1]["planned_peak_activations"] == 11);
  BOOST_TEST(json["per_rank"][1]["measured_peak_memory_bytes"] == 201);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
