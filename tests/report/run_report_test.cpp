#include "dualpipe/sim/report/run_report.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;
constexpr Bytes mib = Bytes{1} << 20;

RunReport report_of(std::string_view family, const Shape& shape, const Costs& costs, Record record = Record::spans) {
  const Program program = lower(generate(family, shape));
  return run_report(program, costs, simulate(program, costs, record));
}

Costs with_memory(Costs costs) {
  for (StageCosts& stage : costs.stages) {
    stage.activation = 600 * mib;
    stage.weight_stash = 200 * mib;
    stage.parameters = 1024 * mib;
    stage.gradients = 1024 * mib;
    stage.optimizer = 6144 * mib;
  }
  return costs;
}

nlohmann::json json_of(const RunReport& report) {
  std::ostringstream out;
  write_json(out, report);
  return nlohmann::json::parse(out.str());
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_run_report)

BOOST_AUTO_TEST_CASE(text_with_memory) {
  BOOST_TEST(to_text(report_of("1f1b", {3, 4}, with_memory(uniform(ms, ms, ms)))) ==
             "1f1b: 3 ranks, 3 stages, 1 chain, 4 micro-batches\n"
             "per micro-batch, of a stage: F 1 ms, B 2 ms (I 1 ms, W 1 ms)\n"
             "communication: latency, messages take no time\n"
             "memory: M_B 600 MiB, M_W 200 MiB, parameters 1 GiB, gradients 1 GiB,\n"
             "  optimizer 6 GiB\n"
             "\n"
             "makespan       18 ms   first start to last end, over all ranks\n"
             "span           18 ms   the longest first-op-to-last-op span of any one rank\n"
             "bubble        33.33%   by makespan: idle share of ranks x makespan (DeepSeek's)\n"
             "              33.33%   by span: the same with the span (the zero-bubble papers')\n"
             "\n"
             "rank   busy  idle   span  bubble  by span  parameters  peak act.  peak memory  in op    at  held then\n"
             "   0  12 ms  6 ms  18 ms  33.33%   33.33%     1 stage          3    9.758 GiB  0F2    2 ms  3 x 0F\n"
             "   1  12 ms  6 ms  15 ms  33.33%   33.33%     1 stage          2    9.172 GiB  1F1    2 ms  2 x 1F\n"
             "   2  12 ms  6 ms  12 ms  33.33%   33.33%     1 stage          1    8.586 GiB  2F0    2 ms  1 x 2F\n");
}

// What matters least goes first, and is named.
BOOST_AUTO_TEST_CASE(text_of_a_terminal) {
  const RunReport report = report_of("1f1b", {3, 4}, with_memory(uniform(ms, ms, ms)));
  const std::string text = to_text(report, {.width = 80, .bytes = ByteUnits::decimal});
  for (std::size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1) {
    BOOST_TEST(display_width(text.substr(begin, text.find('\n', begin) - begin)) <= 80U);
  }
  BOOST_TEST(text.find("\nrank   busy  idle   span  bubble  by span  parameters  peak act.  peak memory\n") !=
             std::string::npos);
  BOOST_TEST(text.ends_with("\n\nno room in 80 columns (--width) for: in op, at, held then\n"));
  BOOST_TEST(text.find("10.48 GB") != std::string::npos);
  BOOST_TEST(to_text(report, {.width = 1000}) == to_text(report));
}

BOOST_AUTO_TEST_CASE(text_of_two_chains_without_memory) {
  BOOST_TEST(to_text(report_of("dualpipe", {4, 8}, uniform(ms, ms, ms, ms / 2, 2 * ms))) ==
             "dualpipe: 4 ranks, 8 stages, 2 chains, 8 micro-batches\n"
             "per micro-batch, of a stage: F 1 ms, B 2 ms (I 1 ms, W 1 ms), F&B 2 ms\n"
             "communication: latency, 500 µs a message\n"
             "memory: no bytes given\n"
             "\n"
             "makespan     26.5 ms   first start to last end, over all ranks\n"
             "span         26.5 ms   the longest first-op-to-last-op span of any one rank\n"
             "bubble        20.75%   by makespan: idle share of ranks x makespan (DeepSeek's)\n"
             "              20.75%   by span: the same with the span (the zero-bubble papers')\n"
             "reduced        27 ms   the last gradient reduction ends\n"
             "\n"
             "rank   busy    idle     span  bubble  by span  parameters  peak act.  in op                 "
             "    at  held then\n"
             "   0  21 ms  5.5 ms  26.5 ms  20.75%   20.75%    2 stages          5  (0F3;7B1)OVERLAP_F_B  "
             "8.5 ms  4 x 0F, 1 x 7F\n"
             "   1  21 ms  5.5 ms  24.5 ms  20.75%   20.75%    2 stages          5  1F2                   "
             "6.5 ms  3 x 1F, 2 x 6F\n"
             "   2  21 ms  5.5 ms  24.5 ms  20.75%   20.75%    2 stages          5  5F2                   "
             "6.5 ms  2 x 2F, 3 x 5F\n"
             "   3  21 ms  5.5 ms  26.5 ms  20.75%   20.75%    2 stages          5  (4F3;3B1)OVERLAP_F_B  "
             "8.5 ms  1 x 3F, 4 x 4F\n");
}

// The names are part of the command line's promise.
BOOST_AUTO_TEST_CASE(names_in_json) {
  const RunReport report = report_of("zb1p", {2, 3}, with_memory(uniform(ms, ms, ms, ms / 2)));
  const auto json = json_of(report);
  BOOST_TEST(json["schedule"] == "zb1p");
  BOOST_TEST(json["ranks"] == 2);
  BOOST_TEST(json["stages"] == 2);
  BOOST_TEST(json["chains"] == 1);
  BOOST_TEST(json["microbatches"] == 3);
  BOOST_TEST(json["makespan_ns"] == report.makespan);
  BOOST_TEST(json["span_ns"] == report.span);
  BOOST_TEST(json["bubble_rate_makespan"].get<double>() == report.bubble_rate_makespan);
  BOOST_TEST(json["bubble_rate_span"].get<double>() == report.bubble_rate_span);
  BOOST_TEST(json["reduced_ns"] == 0);
  BOOST_TEST(json["costs"]["stages"][0]["forward_ns"] == ms);
  BOOST_REQUIRE(json["per_rank"].size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto& rank = json["per_rank"][i];
    const RankReport& expected = report.per_rank[i];
    BOOST_TEST(rank["rank"] == i);
    BOOST_TEST(rank["busy_ns"] == 9 * ms);
    BOOST_TEST(rank["idle_ns"] == report.makespan - 9 * ms);
    BOOST_TEST(rank["span_ns"] == expected.span);
    BOOST_TEST(rank["peak_activations"] == 2 - static_cast<int>(i));
    BOOST_TEST(rank["peak_memory_bytes"] == expected.peak_memory);
    BOOST_TEST(rank["parameters"] == 1);
    BOOST_TEST(rank["peak"]["at_ns"] == *expected.peak.at);
  }
  // Rank 1 holds 1F1 beside what its 1I0 left for 1W0: 600 + 200 MiB.
  const auto& peak = json["per_rank"][1]["peak"];
  BOOST_TEST(peak["op"] == "1F1");
  BOOST_TEST(peak["held"] == nlohmann::json({"1I0", "1F1"}));
  BOOST_TEST(peak["stages"] == nlohmann::json::parse(R"([{"stage": 1, "activations": 1, "weight_gradients": 1}])"));
  BOOST_TEST(json["per_rank"][1]["peak_memory_bytes"] == (8192 + 800) * mib);
}

BOOST_AUTO_TEST_CASE(a_csv_row_per_rank) {
  BOOST_TEST(to_csv(report_of("dualpipe", {2, 4}, uniform(ms, ms, ms, 0, 2 * ms))) ==
             "rank,busy_ns,idle_ns,span_ns,bubble_rate_makespan,bubble_rate_span,peak_activations,peak_memory_bytes,"
             "parameters,peak_op,peak_at_ns\n"
             "0,11000000,0,11000000,0,0,3,0,2,0F1,2000000\n"
             "1,11000000,0,11000000,0,0,3,0,2,2F1,2000000\n");
}

BOOST_AUTO_TEST_CASE(remarks_stand_below_the_title) {
  RunReport report = report_of("1f1b", {1, 1}, uniform(ms, ms, ms));
  BOOST_TEST(json_of(report)["remarks"] == nlohmann::json::array());
  report.remarks = {"one", "two"};
  BOOST_TEST(to_text(report).starts_with("1f1b: 1 rank, 1 stage, 1 chain, 1 micro-batch\none\ntwo\nper micro-batch, "));
  BOOST_TEST(json_of(report)["remarks"] == (nlohmann::json{"one", "two"}));
}

// A name from a file may hold anything.
BOOST_AUTO_TEST_CASE(odd_names_do_not_break_the_json) {
  RunReport report = report_of("1f1b", {1, 1}, uniform(ms, ms, ms));
  report.schedule = "a \"b\"\n\x01";
  BOOST_TEST(json_of(report)["schedule"] == report.schedule);
  report.schedule = "\xff";
  BOOST_TEST(json_of(report)["schedule"] == "\xef\xbf\xbd");
}

BOOST_AUTO_TEST_CASE(without_spans_only_the_moment_of_the_peak_is_missing) {
  const Costs costs = with_memory(uniform(ms, ms, ms));
  RunReport with = report_of("dualpipe", {4, 8}, costs);
  const RunReport without = report_of("dualpipe", {4, 8}, costs, Record::ranks);
  BOOST_TEST(json_of(without)["per_rank"][0]["peak"]["at_ns"].is_null());
  for (RankReport& rank : with.per_rank) {
    BOOST_TEST(rank.peak.at.has_value());
    rank.peak.at.reset();
  }
  BOOST_TEST((with == without));
}

StageCosts without_memory_of_ops(StageCosts stage) {
  stage.activation = stage.weight_stash = stage.message = 0;
  stage.recompute_activation.reset();
  stage.forward_workspace = stage.backward_workspace = 0;
  stage.input_gradient_workspace = stage.weight_gradient_workspace = 0;
  stage.overlapped_workspace.reset();
  return stage;
}

// What is said to be held at the peak is what the peak counts; rates are means over the ranks.
BOOST_AUTO_TEST_CASE(adds_up) {
  Random random(8);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency);
    for (StageCosts& stage : costs.stages) stage = without_memory_of_ops(stage);
    const Timeline timeline = simulate(program, costs);
    const RunReport report = run_report(program, costs, timeline);
    BOOST_TEST_CONTEXT(each) {
      double by_makespan = 0;
      double by_span = 0;
      for (const RankReport& rank : report.per_rank) {
        std::size_t activations = 0;
        std::size_t held = 0;
        for (const HeldOfStage& stage : rank.peak.stages) {
          activations += stage.activations;
          held += stage.activations + stage.weight_gradients;
        }
        BOOST_TEST(activations == static_cast<std::size_t>(rank.peak_activations));
        BOOST_TEST(held == rank.peak.ops.size());
        BOOST_TEST(rank.busy + rank.idle == report.makespan);
        by_makespan += rank.bubble_rate_makespan / report.ranks;
        by_span += rank.bubble_rate_span / report.ranks;
      }
      BOOST_TEST(by_makespan == report.bubble_rate_makespan, boost::test_tools::tolerance(1e-9));
      BOOST_TEST(by_span == report.bubble_rate_span, boost::test_tools::tolerance(1e-9));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
