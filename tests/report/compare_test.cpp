#include "dualpipe/sim/report/compare.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

NamedRun traced(const std::string& name, const Program& program, const Costs& costs) {
  std::stringstream trace;
  write_chrome_trace(trace, program, costs, simulate(program, costs));
  return {name, read_chrome_trace(trace, name)[0]};
}

NamedRun traced(const std::string& name, std::string_view family, const Shape& shape) {
  return traced(name, lower(generate(family, shape)), uniform(ms, ms, ms));
}

std::string error_of(const NamedRun& planned, const NamedRun& measured) {
  try {
    (void)compare(planned, measured);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// What a run did that failed on each rank after so many ops.
NamedRun ended_after(NamedRun run, const std::vector<std::size_t>& ops) {
  for (std::size_t rank = 0; rank < ops.size(); ++rank) {
    run.run.ranks[rank].ops.resize(ops[rank]);
    run.run.ranks[rank].spans.resize(ops[rank]);
  }
  return run;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_compare)

// By way of two files, the report is the one that is made of the timelines.
BOOST_AUTO_TEST_CASE(traces_and_timelines_compare_alike) {
  for (const std::string_view name : {"1f1b", "zb1p", "dualpipe", "interleaved"}) {
    const Program program = lower(generate(name, {4, 8, name == "interleaved" ? 2 : 1}));
    Costs plan = uniform(ms, ms, ms, ms / 10);
    plan.stages[0].activation = 1 << 20;
    Costs real = uniform(ms + 12'345, ms, ms, ms / 7);
    real.stages[0].activation = 2 << 20;
    const auto peaks = [&](const Costs& costs) {
      std::vector<RankPeak> all;
      for (const RankMemory& memory : memory_of_ranks(program, costs)) {
        all.push_back({memory.peak_activations, memory.peak});
      }
      return all;
    };
    const Comparison found = compare(traced("a", program, plan), traced("b", program, real));
    const Comparison expected = compare(run_of("a", program, simulate(program, plan), peaks(plan)),
                                        run_of("b", program, simulate(program, real), peaks(real)));
    BOOST_TEST((found.difference == expected.difference));
    BOOST_TEST(!found.difference.causes.empty());
    BOOST_TEST(found.compared == program.schedule.ops.size());
    BOOST_TEST((found.ops == PlannedMeasured<std::size_t>{found.compared, found.compared}));
  }
}

BOOST_AUTO_TEST_CASE(other_schedules_are_told_by_an_op) {
  BOOST_TEST(error_of(traced("a", "1f1b", {2, 4}), traced("b", "1f1b", {3, 4})) ==
             "a has 2 ranks, b has 3 ranks: only two runs of one schedule can be compared");
  // All ops are in both.
  BOOST_TEST(error_of(traced("a", "gpipe", {2, 4}), traced("b", "1f1b", {2, 4})) ==
             "two schedules, where only two runs of one can be compared: rank 0 runs 0F2 as its op 2 in a, rank 0 runs "
             "0B0 as its op 2 in b");
  BOOST_TEST(error_of(traced("a", "gpipe", {2, 3}), traced("b", "gpipe", {2, 4})) ==
             "two schedules, where only two runs of one can be compared: rank 0 runs 0B0 as its op 3 in a, rank 0 runs "
             "0F3 as its op 3 in b; 0F3 is in b alone");
  const std::string pairs = error_of(traced("a", "dualpipe", {2, 4}), traced("b", "zb1p", {2, 4}));
  BOOST_TEST(pairs.find("3F0 is in a alone") != std::string::npos, pairs);
}

// Where one run has a pair and the other its ops in a row, the pair is named.
BOOST_AUTO_TEST_CASE(a_pair_is_not_two_ops) {
  const NamedRun a = traced("a", "dualpipe", {2, 4});
  NamedRun b = a;
  b.name = "b";
  auto& ops = b.run.ranks[0].ops;
  const auto pair = static_cast<std::size_t>(std::ranges::find(ops, true, &Op::with_next) - ops.begin());
  const std::string cell = cell_text(std::span(a.run.ranks[0].ops).subspan(pair));
  ops[pair].with_next = false;
  const std::string error = error_of(a, b);
  BOOST_TEST(error.find("rank 0 runs " + cell + " as its op") != std::string::npos, error);
  BOOST_TEST(error.find(cell + " is in a alone") != std::string::npos, error);
}

// 1F1B, P = 2, M = 2:   rank 0: F0 F1 B0 B1     rank 1: F0 B0 F1 B1;  F = 1, B = 2
//                               0-1 1-2 4-6 7-9           1-2 2-4 4-5 5-7
// Without rank 0's backwards and rank 1's second micro-batch, the last end is that of rank 1's B0, 4.
BOOST_AUTO_TEST_CASE(a_run_that_ended_early_is_compared_up_to_there) {
  const NamedRun whole = traced("whole", "1f1b", {2, 2});
  const NamedRun part = ended_after(traced("part", "1f1b", {2, 2}), {2, 2});
  for (const bool planned : {false, true}) {
    const Comparison found = planned ? compare(whole, part) : compare(part, whole);
    BOOST_TEST((found.difference.makespan == PlannedMeasured<Time>{4 * ms, 4 * ms}));
    BOOST_TEST(found.compared == 4U);
    BOOST_TEST(found.difference.causes.empty());  // nobody knows what the rest would have waited for
    const std::string note = (planned ? "planned" : "measured") + std::string(" has 4 ops that the other run");
    BOOST_TEST(to_text(found).find(note) != std::string::npos);
  }
  // On no rank anything in common.
  const Comparison none = compare(whole, ended_after(whole, {0, 0}));
  BOOST_TEST(none.compared == 0U);
  BOOST_TEST((none.difference.makespan == PlannedMeasured<Time>{0, 0}));
  BOOST_TEST(to_text(none).find("makespan") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(text_and_json_name_the_runs) {
  const Comparison found = compare(traced("a.json", "1f1b", {2, 2}), traced("b.json", "1f1b", {2, 2}));
  BOOST_TEST(to_text(found) == "planned   a.json\nmeasured  b.json\n\n" + to_text(found.difference));
  std::ostringstream out;
  write_json(out, found);
  const auto json = nlohmann::json::parse(out.str());
  BOOST_TEST(json["planned"] == "a.json");
  BOOST_TEST(json["compared_ops"] == 8);
  BOOST_TEST(json["measured_ops"] == 8);
  BOOST_TEST(json["planned_makespan_ns"] == 9 * ms);
  BOOST_TEST(json["per_rank"].size() == 2U);
}

// 1F1B's F are those of ZB1P, whose B are mostly in two; each figure is what simulate() says of the one and the other.
BOOST_AUTO_TEST_CASE(two_schedules_are_compared_where_they_run_the_same) {
  const Program one = lower(generate("1f1b", {2, 4}));
  const Program other = lower(generate("zb1p", {2, 4}));
  const Costs costs = uniform(ms, ms, ms);
  const Comparison found =
      compare_schedules(simulated("1f1b", one, costs), simulated("zb1p", other, costs), {"1f1b", "zb1p"});
  const auto count = [](const Program& program, Kind kind) {
    return static_cast<std::size_t>(std::ranges::count(program.schedule.ops, kind, &Op::kind));
  };
  BOOST_TEST(count(other, Kind::backward) < 8U);
  BOOST_TEST(found.compared == 8 + count(other, Kind::backward));
  BOOST_TEST((found.difference.makespan ==
              PlannedMeasured<Time>{simulate(one, costs).makespan(), simulate(other, costs).makespan()}));
  BOOST_TEST((found.only.planned == std::vector<OnlyCells>{{"B", 8 - count(other, Kind::backward), "0B0"}}));
  BOOST_TEST((found.only.measured == std::vector<OnlyCells>{{"I", count(other, Kind::input_gradient), "0I0"},
                                                            {"W", count(other, Kind::weight_gradient), "0W0"}}));
  BOOST_TEST((found.difference.classes[0].median == PlannedMeasured<std::optional<Time>>{ms, ms}));
  BOOST_TEST((found.difference.classes[2].op_class == "I"));
  BOOST_TEST((found.difference.classes[2].median == PlannedMeasured<std::optional<Time>>{std::nullopt, ms}));
  const std::string text = to_text(found);
  BOOST_TEST(text.find("A  1f1b\nB  zb1p\nonly in 1f1b: ") == 0U, text);
  BOOST_TEST(text.find("busy 1f1b") != std::string::npos);
  std::ostringstream out;
  write_json(out, found);
  const auto json = nlohmann::json::parse(out.str());
  BOOST_TEST(json["planned"] == "1f1b");
  BOOST_TEST(json["only_in_planned"][0]["first"] == "0B0");
  BOOST_TEST(json["classes"][2]["planned_median_ns"].is_null());
}

BOOST_AUTO_TEST_CASE(one_schedule_under_two_costs) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  Costs real = uniform(2 * ms, 2 * ms, 2 * ms);
  real.stages[0].activation = 1 << 20;
  const NamedRun a = simulated("a", program, uniform(ms, ms, ms));
  const NamedRun b = simulated("b", program, real);
  const Comparison found = compare_schedules(a, b, {"a", "b"});
  BOOST_TEST(found.compared == program.schedule.ops.size());
  BOOST_TEST(found.only.planned.empty());
  BOOST_TEST(found.only.measured.empty());
  BOOST_TEST((found.difference == compare(a, b).difference));
  BOOST_TEST(found.difference.makespan.measured == 2 * found.difference.makespan.planned);
  BOOST_TEST(found.difference.per_rank[0].peak.measured.memory > found.difference.per_rank[0].peak.planned.memory);
}

BOOST_AUTO_TEST_CASE(schedules_with_other_stages_are_compared_as_a_whole) {
  const Costs costs = uniform(ms, ms, ms);
  const auto run = [&](std::string_view family, const Shape& shape) {
    return simulated(std::string(family), lower(generate(family, shape)), costs);
  };
  const Comparison found =
      compare_schedules(run("1f1b", {4, 8}), run("interleaved", {4, 8, 2}), {"1f1b", "interleaved"});
  BOOST_TEST(found.compared == 0U);
  BOOST_TEST((found.stages == PlannedMeasured<std::size_t>{4, 8}));
  BOOST_TEST(found.difference.starts.op.empty());
  BOOST_TEST(found.difference.per_rank.size() == 4U);
  BOOST_TEST(to_text(found).find("1f1b has 4 stages, interleaved 8, and not on the same ranks") != std::string::npos);
  BOOST_TEST(to_text(found).find("starts off by") == std::string::npos);
  BOOST_CHECK_EXCEPTION((void)compare_schedules(run("1f1b", {2, 8}), run("1f1b", {4, 8}), {"a", "b"}), InputError,
                        [](const InputError& error) {
                          return std::string(error.what()) ==
                                 "1f1b has 2 ranks, 1f1b 4: only what runs on the same ranks can be compared";
                        });
}

// A plan of the schedule that ran is compared op by op; one of another schedule, where both run the same.
BOOST_AUTO_TEST_CASE(a_plan_and_a_run) {
  const Costs costs = uniform(1000, 1000, 1000);
  const NamedRun ran = simulated("run", lower(generate("1f1b", {4, 8})), uniform(2000, 2000, 2000));
  const Comparison same = compare_plan(simulated("plan", lower(generate("1f1b", {4, 8})), costs), ran);
  BOOST_TEST(same.is_of_one_schedule);
  BOOST_TEST(same.difference.makespan.measured == 2 * same.difference.makespan.planned);
  const Comparison other = compare_plan(simulated("plan", lower(generate("zb1p", {4, 8})), costs), ran);
  BOOST_TEST(!other.is_of_one_schedule);
  BOOST_TEST(other.labels.planned == "planned");
  BOOST_TEST(other.only.measured.size() == 1U);
  BOOST_TEST(other.only.measured[0].op_class == "B");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
