// Costs at their limits, each alone and any two together: they are refused, or every figure is right.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "dualpipe/sim/report/closed_form.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "dualpipe/sim/trace/run_reader.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/verdict.h"

namespace dualpipe::test {
namespace {

__extension__ using Int128 = __int128;

constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                         CommunicationModel::stream};

struct Extreme {
  std::string name;
  std::function<void(Costs&, int ranks)> set;
};

// Each value that costs.h limits, at its limit; of bandwidths also one by which the largest message takes just a day.
std::vector<Extreme> extremes() {
  std::vector<Extreme> all;
  const auto add_of_stage = [&](const std::string& name, auto StageCosts::*member, std::int64_t value) {
    all.push_back({name, [=](Costs& costs, int) { costs.stages[0].*member = value; }});
  };
  add_of_stage("forward", &StageCosts::forward, time_max);
  add_of_stage("backward", &StageCosts::backward, time_max);
  add_of_stage("input gradient", &StageCosts::input_gradient, time_max);
  add_of_stage("weight gradient", &StageCosts::weight_gradient, time_max);
  add_of_stage("recompute", &StageCosts::recompute, time_max);
  add_of_stage("overlapped", &StageCosts::overlapped, time_max);
  add_of_stage("activation", &StageCosts::activation, bytes_max);
  add_of_stage("weight stash", &StageCosts::weight_stash, bytes_max);
  add_of_stage("message", &StageCosts::message, bytes_max);
  add_of_stage("forward workspace", &StageCosts::forward_workspace, bytes_max);
  add_of_stage("backward workspace", &StageCosts::backward_workspace, bytes_max);
  add_of_stage("overlapped workspace", &StageCosts::overlapped_workspace, bytes_max);
  add_of_stage("least overlapped workspace", &StageCosts::overlapped_workspace, -bytes_max);
  add_of_stage("parameters", &StageCosts::parameters, bytes_max);
  add_of_stage("gradients", &StageCosts::gradients, bytes_max);
  add_of_stage("optimizer", &StageCosts::optimizer, bytes_max);
  all.push_back({"latency", [](Costs& costs, int) { costs.latency = time_max; }});
  all.push_back({"launch", [](Costs& costs, int) { costs.launch = time_max; }});
  for (const double speed : {1e-6, 1e-4, 1e6}) {
    all.push_back({"speed " + std::to_string(speed),
                   [=](Costs& costs, int ranks) { costs.speed.assign(static_cast<std::size_t>(ranks), speed); }});
  }
  const double a_day = static_cast<double>(bytes_max) * 1e9 / static_cast<double>(time_max);
  for (const double bandwidth : {std::numeric_limits<double>::denorm_min(), a_day * 1.001, 1e308}) {
    all.push_back({"bandwidth " + std::to_string(bandwidth), [=](Costs& costs, int) { costs.bandwidth = bandwidth; }});
  }
  return all;
}

Int128 wide_duration(const Costs& costs, Op op, int rank) {
  const StageCosts& stage = costs.of(op.stage);
  const Time recompute = is_backward_half(op.kind) ? stage.recompute : 0;
  const std::map<Kind, Time> own{{Kind::forward, stage.forward},
                                 {Kind::backward, stage.backward},
                                 {Kind::input_gradient, stage.input_gradient},
                                 {Kind::weight_gradient, stage.weight_gradient}};
  const double speed = costs.speed.empty() ? 1 : costs.speed[static_cast<std::size_t>(rank)];
  return static_cast<Int128>(std::roundl(static_cast<double>(own.at(op.kind) + recompute) / speed));
}

// Under `latency`, of a schedule without pairs, in 128 bits: when each op ends. Rank by rank over and over, until
// nothing moves any more.
std::vector<Int128> wide_ends(const Schedule& schedule, const Costs& costs) {
  const Placement& placement = schedule.placement;
  std::map<std::tuple<bool, int, std::uint32_t>, Int128> made;  // forward, stage, micro-batch
  std::vector<Int128> ends(schedule.ops.size());
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < schedule.ranks(); ++rank) {
      Int128 free = 0;
      for (std::size_t i = schedule.rank_begin[static_cast<std::size_t>(rank)];
           i < schedule.rank_begin[static_cast<std::size_t>(rank) + 1]; ++i) {
        const Op op = schedule.ops[i];
        const bool forward = op.kind == Kind::forward;
        const auto from = op.kind == Kind::weight_gradient ? std::nullopt
                          : forward                        ? placement.previous(op.stage)
                                                           : placement.next(op.stage);
        Int128 start = free;
        if (from) start = std::max(start, made[{forward, *from, op.micro_batch}] + costs.latency);
        const Int128 end = start + wide_duration(costs, op, rank);
        moved = moved || end != ends[i];
        ends[i] = end;
        if (op.kind != Kind::weight_gradient) made[{forward, op.stage, op.micro_batch}] = end;
        free = end + costs.launch;
      }
    }
  }
  return ends;
}

// Whether costs may be refused: something takes more than a day that must not, or more than half of the longest run by
// the crudest of bounds, every op and message as long as the longest, one after the other.
bool may_be_refused(const Program& program, const Costs& costs) {
  const StageCosts& stage = costs.stages[0];
  const long double duration = 2.0L * std::max({stage.forward, stage.backward, stage.input_gradient,
                                                stage.weight_gradient, stage.recompute, stage.overlapped.value_or(0)});
  const long double speed = costs.speed.empty() ? 1 : costs.speed[0];
  const bool has_links = costs.model != CommunicationModel::latency && costs.bandwidth > 0;
  const long double transfer = has_links ? 2.0L * std::max(stage.message, stage.gradients) * 1e9L / costs.bandwidth : 0;
  if (transfer > time_max) return true;
  const long double each = duration / speed * 2 + costs.launch + 2 * (costs.latency + transfer);
  return each * static_cast<long double>(program.schedule.ops.size() + program.communication.size()) >
         run_time_max / 2.0L;
}

bool memory_may_be_refused(const Program& program, const Costs& costs) {
  const StageCosts& stage = costs.stages[0];
  const long double largest =
      std::max({stage.activation, stage.weight_stash, stage.message, stage.forward_workspace, stage.backward_workspace,
                stage.overlapped_workspace.value_or(0), stage.parameters, stage.gradients, stage.optimizer});
  return largest * 9 * static_cast<long double>(program.schedule.ops.size()) > 4e18L;
}

// What is wrong, or nothing.
std::string flaw(const Program& program, const Costs& costs) {
  const std::string times_refused = refusal([&] { (void)simulate(program, costs); });
  if (!times_refused.empty() && !may_be_refused(program, costs)) return "refused: " + times_refused;
  const std::string memory_refused = refusal([&] { (void)RankMemories(program, costs); });
  if (!memory_refused.empty() && !memory_may_be_refused(program, costs)) return "refused: " + memory_refused;
  if (!times_refused.empty() || !memory_refused.empty()) return {};

  const Timeline timeline = simulate(program, costs);
  for (const Span& span : timeline.ops) {
    if (span.start < 0 || span.end < span.start || span.end > run_time_max) return "an op out of bounds";
  }
  if (costs.model == CommunicationModel::latency && program.schedule.name == "1f1b") {
    const auto ends = wide_ends(program.schedule, costs);
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (ends[i] != timeline.ops[i].end) return "another end in 128 bits: " + to_text(program.schedule.ops[i]);
    }
  }
  for (const RankMemory& memory : memory_of_ranks(program, costs)) {
    if (memory.resident < 0 || memory.peak < memory.resident) return "less than nothing is held";
  }
  return difference_from_oracle(program, costs);
}

// Of one rank and one micro-batch, which take nearly as long as may be.
Program alone(const std::string& ops) { return lower(schedule_of(straight(1, 1), {ops})); }
Costs longest(Time backward) {
  Costs costs = uniform(time_max, backward, 0);
  costs.speed = {static_cast<double>(time_max + backward) / (0.998 * static_cast<double>(run_time_max))};
  return costs;
}

// Of a chart of one rank, what is between the axis and the legend.
std::string row(const std::string& chart) {
  const std::size_t begin = chart.find("\nrank") + 1;
  return chart.substr(begin, chart.find('\n', begin) - begin);
}

std::string rectangles(const Program& program, const Costs& costs, const Timeline& timeline) {
  std::ostringstream out;
  write_gantt_svg(out, program, costs, timeline);
  const std::string svg = out.str();
  std::string found;
  for (std::size_t at = svg.find("<rect"); at != std::string::npos; at = svg.find("<rect", at + 1)) {
    found += svg.substr(at, svg.find('>', at) - at) + "\n";
  }
  return found;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_extremes)

BOOST_AUTO_TEST_CASE(alone_and_in_pairs) {
  const auto all = extremes();
  int simulated = 0;
  int refused = 0;
  for (const auto& [family, shape] : {std::pair("1f1b", Shape{2, 2}), {"dualpipe", Shape{2, 4}}}) {
    const Program program = lower(generate(family, shape));
    for (const CommunicationModel model : models) {
      for (std::size_t i = 0; i < all.size(); ++i) {
        for (std::size_t j = i; j < all.size(); ++j) {
          Costs costs = uniform(1'000, 1'000, 1'000, 100);
          costs.model = model;
          all[i].set(costs, shape.ranks);
          all[j].set(costs, shape.ranks);
          BOOST_TEST_CONTEXT(family << ", " << model << ", " << all[i].name << ", " << all[j].name) {
            BOOST_TEST(flaw(program, costs) == "");
          }
          ++(refusal([&] { (void)simulate(program, costs); }).empty() ? simulated : refused);
        }
      }
    }
  }
  BOOST_TEST(simulated > 1'000);
  BOOST_TEST(refused > 50);
}

// A day at a millionth of the speed are 2,700 years.
BOOST_AUTO_TEST_CASE(a_slow_rank_is_named) {
  Costs costs = uniform(time_max, 0, 0);
  costs.speed = {1, 1e-6};
  const std::string error = refusal([&] { (void)simulate(lower(generate("1f1b", {2, 2})), costs); });
  BOOST_TEST(error ==
             "stage 1: 86400000000000 ns at the speed 1e-06 of rank 1 are more than 73 years, the longest run that can "
             "be simulated; use a shorter duration or a higher speed");
  costs.stages[0].overlapped = costs.stages[0].forward;
  costs.stages[0].forward = 0;
  BOOST_TEST(refusal([&] {
               (void)simulate(lower(generate("dualpipe", {2, 4})), costs);
             }).find("of rank 1") != std::string::npos);
}

// With jitter a draw decides: no op may be longer than the bound allows, and none shorter than nothing.
BOOST_AUTO_TEST_CASE(the_longest_run_with_the_largest_jitter) {
  const Program program = alone("0F0 0B0");
  Costs costs = longest(time_max);
  costs.jitter = std::nextafter(1.0, 0.0);
  BOOST_TEST(refusal([&] { (void)simulate(program, costs); }).find("73 years") != std::string::npos);
  costs.speed[0] *= 2;
  for (costs.seed = 0; costs.seed < 1'000; ++costs.seed) {
    const Time makespan = simulate(program, costs).makespan();
    BOOST_REQUIRE(makespan >= 0);
    BOOST_REQUIRE(makespan <= run_time_max);
  }
}

// 32,767 weights, each shared by two ranks; the reductions stand in a queue.
BOOST_AUTO_TEST_CASE(reductions_count) {
  constexpr std::size_t weights = stage_count_max / 2;
  Schedule schedule;
  schedule.placement.ranks = 2;
  schedule.micro_batches = 1;
  schedule.rank_begin = {0};
  for (std::uint16_t stage = 0; stage < 2 * weights; ++stage) {
    schedule.placement.rank_of.push_back(stage < weights ? 0 : 1);
    schedule.placement.chain_begin.push_back(stage);
    schedule.placement.weights_of.push_back(static_cast<std::uint16_t>(stage % weights));
    schedule.ops.push_back({0, stage, Kind::forward, false});
    schedule.ops.push_back({0, stage, Kind::backward, false});
    if ((stage + 1) % weights == 0) schedule.rank_begin.push_back(schedule.ops.size());
  }
  schedule.placement.chain_begin.push_back(2 * weights);
  const Program program = lower(schedule);

  Costs costs = uniform(1, 1, 0, time_max / 2);
  BOOST_TEST(simulate(program, costs).reduced == 2 + static_cast<Time>(weights) * (time_max / 2));
  costs.latency = time_max;
  BOOST_TEST(refusal([&] { (void)simulate(program, costs); }).find("73 years") != std::string::npos);
}

// The formulas know no speed: a run of fast ranks may be short where they say that its bubble is not.
BOOST_AUTO_TEST_CASE(closed_forms) {
  const Shape shape{static_cast<int>(stage_count_max), 1};
  const auto bubble = [&](std::string_view family, const Costs& costs) {
    return closed_form(family, shape, costs)->bubble;
  };
  const Time ranks = Time{stage_count_max} - 1;
  BOOST_TEST(bubble("1f1b", uniform(time_max / 2, time_max / 2, 0)) == ranks * (time_max / 2 + time_max / 2));
  BOOST_TEST(bubble("zb1p", uniform(0, 0, time_max)) == -ranks * time_max);
  Costs costs = uniform(time_max, time_max, 0);
  BOOST_TEST(refusal([&] { (void)bubble("1f1b", costs); }).find("65534 times 172800 s") != std::string::npos);
  costs.stages[0] = {};
  costs.stages[0].weight_gradient = time_max;
  BOOST_TEST(refusal([&] { (void)bubble("zb1p", costs); }).find("65534 times -172800 s") != std::string::npos);
  costs.stages.clear();
  BOOST_TEST(refusal([&] { (void)bubble("1f1b", costs); }).find("no stage") != std::string::npos);
}

// Memory asks for costs that fit, too, not only simulate().
BOOST_AUTO_TEST_CASE(memory_of_costs_that_do_not_fit) {
  const Program program = lower(generate("1f1b", {2, 2}));
  Costs costs = uniform(1, 1, 1);
  costs.stages[0].activation = -1;
  BOOST_TEST(refusal([&] { (void)memory_of_ranks(program, costs); }).find("activation_bytes is -1") !=
             std::string::npos);
  costs.stages.resize(3);
  BOOST_TEST(refusal([&] { (void)rank_memory(program, costs, 0); }) != "");
}

// But for the times at its axis a chart is the same for a run of any length.
BOOST_AUTO_TEST_CASE(reports_of_the_longest_run) {
  for (const auto& [ops, backward] : {std::pair("0F0", 0), {"0F0 0B0", 1'000}}) {
    const Program program = alone(ops);
    const Costs costs = longest(time_max / 1'000 * backward);
    const Timeline timeline = simulate(program, costs);
    const Costs short_costs = uniform(1'000, backward, 0);
    const Timeline short_timeline = simulate(program, short_costs);
    BOOST_TEST(timeline.makespan() > run_time_max / 1'000 * 997);
    for (const int width : {20, 100, 100'000}) {
      BOOST_TEST(row(gantt(program, timeline, {width})) == row(gantt(program, short_timeline, {width})));
    }
    BOOST_TEST(rectangles(program, costs, timeline) == rectangles(program, short_costs, short_timeline));
    std::stringstream trace;
    write_chrome_trace(trace, program, costs, timeline);
    BOOST_TEST((read_chrome_trace(trace, "trace").at(0).ranks.at(0).spans == timeline.ops));
  }
}

// And where times have no common unit, so that columns are rounded up, beyond the end of the run.
BOOST_AUTO_TEST_CASE(a_dense_chart_of_the_longest_run) {
  const Program program = alone("0F0 0B0");
  const Timeline timeline = simulate(program, longest(time_max / 7 * 5 + 1));
  for (const int width : {20, 33, 100, 100'000}) {
    const std::string chart = row(gantt(program, timeline, {width}));
    const auto forward = static_cast<double>(chart.find('B') - chart.find('F'));
    const auto backward = static_cast<double>(chart.size() - chart.find('B'));
    BOOST_TEST(static_cast<int>(chart.size()) <= std::max(width, 28));
    BOOST_TEST(std::abs(forward / (forward + backward) - 7.0 / 12) < 0.05);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
