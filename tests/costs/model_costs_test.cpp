#include "dualpipe/sim/costs/model_costs.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {

using test::refusal;

namespace {

using test::Random;

StageCosts part(Time forward, Time backward) {
  StageCosts costs;
  costs.forward = forward;
  costs.backward = backward;
  return costs;
}

ModelCosts random_model(Random& random, int parts) {
  ModelCosts costs;
  costs.parts = test::random_costs(random, straight(parts, 1), CommunicationModel::links).stages;
  costs.parts.resize(static_cast<std::size_t>(parts), costs.parts[0]);
  return costs;
}

// What a chain has of the figures that are shared out, and what no stage of it exceeds.
using Sums = std::vector<std::int64_t>;
Sums sums_of(const std::vector<StageCosts>& stages) {
  Sums sums(10);
  for (const StageCosts& each : stages) {
    const Sums own{each.forward,    each.backward,     each.input_gradient, each.weight_gradient, each.recompute,
                   each.activation, each.weight_stash, each.parameters,     each.gradients,       each.optimizer};
    for (std::size_t i = 0; i < own.size(); ++i) sums[i] += own[i];
  }
  return sums;
}
Sums largest_of(const std::vector<StageCosts>& stages) {
  Sums largest(4);
  for (const StageCosts& each : stages) {
    const Sums own{each.forward_workspace, each.backward_workspace, each.input_gradient_workspace,
                   each.weight_gradient_workspace};
    for (std::size_t i = 0; i < own.size(); ++i) largest[i] = std::max(largest[i], own[i]);
  }
  return largest;
}

std::string refusal_of(const ModelCosts& costs, const Placement& placement = straight(2, 1)) {
  return refusal([&] { (void)stage_costs(costs, placement); });
}

BOOST_AUTO_TEST_SUITE(costs_model_costs)

BOOST_AUTO_TEST_CASE(parts_of_a_stage_are_put_together) {
  ModelCosts model;
  model.parts = {{10, 20, 11, 9, 1, 25, 100, 40, 7, 50, 60, 70, 80, -5, 1000, 2000, 3000, {}},
                 {30, 40, 21, 19, 2, 60, 300, 50, 8, 40, 90, 30, 85, -9, 5000, 6000, 7000, {}}};
  const Costs costs = stage_costs(model, straight(1, 1));
  const StageCosts both{40, 60, 32, 28, 3, 85, 400, 90, 8, 50, 90, 70, 85, -5, 6000, 8000, 10'000, {}};
  BOOST_TEST((costs.stages == std::vector{both}));

  model.parts[1].overlapped.reset();
  BOOST_TEST(!stage_costs(model, straight(1, 1)).stages[0].overlapped);
  BOOST_TEST(stage_costs(model, straight(1, 1)).stages[0].overlapped_workspace.has_value());
  BOOST_TEST(!has_overlapped(stage_costs(model, straight(2, 1))));
  BOOST_TEST(stage_costs(model, straight(2, 1)).stages[0].overlapped.has_value());
  model.parts[1].overlapped = 60;
  BOOST_TEST(has_overlapped(stage_costs(model, straight(2, 1))));
}

// A part that does not recompute holds all of its own. Shares that are rounded apart stay costs that check() takes.
BOOST_AUTO_TEST_CASE(recomputed_parts) {
  ModelCosts model;
  model.parts.resize(2);
  model.parts[0].recompute = 3;
  model.parts[0].activation = 100;
  model.parts[0].recompute_activation = 11;
  model.parts[1].activation = 50;
  const Costs joined = stage_costs(model, straight(1, 1));
  BOOST_TEST(joined.stages[0].activation == 150);
  BOOST_TEST(joined.stages[0].held_activation() == 61);
  BOOST_TEST(!stage_costs(model, straight(2, 1)).stages[1].recompute_activation);

  model.parts.resize(1);
  for (Bytes bytes = 0; bytes <= 12; ++bytes) {
    model.parts[0].activation = 12;
    model.parts[0].recompute_activation = bytes;
    for (int stages = 1; stages <= 9; ++stages) {
      Bytes held = 0;
      for (const StageCosts& each : stage_costs(model, straight(stages, 1)).stages) held += each.held_activation();
      BOOST_TEST(held <= 12);
      BOOST_TEST((stages > 3 || held == bytes));
    }
  }
}

// 2 parts on 5 stages: the one of 20 in 2, that of 31 in 3.
BOOST_AUTO_TEST_CASE(a_part_is_divided_evenly) {
  ModelCosts model;
  model.parts = {{10, 10, 5, 5, 0, 19, 100, 41, 7, 50, 60, 70, 80, -5, 1001, 2000, 3000, {}},
                 {11, 20, 10, 10, 0, 28, 300, 50, 0, 40, 90, 30, 85, -9, 5000, 6000, 7000, {}}};
  const Costs costs = stage_costs(model, straight(5, 1));
  BOOST_TEST_REQUIRE(costs.stages.size() == 5U);
  const StageCosts first{5, 5, 2, 2, 0, 9, 50, 20, 7, 50, 60, 70, 80, -5, 500, 1000, 1500, {}};
  const StageCosts second{5, 5, 3, 3, 0, 10, 50, 21, 7, 50, 60, 70, 80, -5, 501, 1000, 1500, {}};
  BOOST_TEST((costs.stages[0] == first));
  BOOST_TEST((costs.stages[1] == second));
  // What goes on inside of the last part is what came into it.
  for (const std::size_t i : {2U, 3U}) BOOST_TEST(costs.stages[i].message == 7);
  BOOST_TEST(costs.stages[4].message == 0);
  for (const std::size_t i : {2U, 3U, 4U}) {
    BOOST_TEST(costs.stages[i].activation == 100);
    BOOST_TEST(costs.stages[i].backward_workspace == 90);
  }
}

// As V chunks on each of P ranks have the P parts of 1F1B.
BOOST_AUTO_TEST_CASE(parts_of_one_schedule_serve_another) {
  ModelCosts model;
  for (const Time time : {100, 104, 98, 103}) model.parts.push_back(part(time, 2 * time));
  const auto forwards = [&](const Placement& placement) {
    std::vector<Time> times;
    for (const StageCosts& stage : stage_costs(model, placement).stages) times.push_back(stage.forward);
    return times;
  };
  BOOST_TEST((forwards(straight(4, 1)) == std::vector<Time>{100, 104, 98, 103}));
  BOOST_TEST((forwards(straight(4, 2)) == std::vector<Time>{50, 50, 52, 52, 49, 49, 51, 52}));
  BOOST_TEST((forwards(v_shape(4)) == forwards(straight(4, 2))));
  BOOST_TEST((forwards(two_way(4)) == std::vector<Time>{100, 104, 98, 103, 100, 104, 98, 103}));
  BOOST_TEST((forwards(straight(2, 1)) == std::vector<Time>{204, 201}));
  BOOST_TEST((forwards(v_shape(2)) == forwards(straight(4, 1))));
}

BOOST_AUTO_TEST_CASE(a_given_cut_is_taken) {
  ModelCosts model;
  model.parts = {part(1, 0), part(10, 0), part(100, 0), part(1000, 0)};
  model.cut = {3, 1};
  BOOST_TEST(stage_costs(model, straight(2, 1)).stages[0].forward == 111);
  BOOST_TEST(stage_costs(model, two_way(2)).stages[3].forward == 1000);
  model.cut = {1, 3};
  BOOST_TEST(stage_costs(model, straight(2, 1)).stages[0].forward == 1);
  BOOST_TEST(stage_costs(model, straight(2, 1)).stages[1].forward == 1110);
}

// A rank that is slow by accident gets what it would get otherwise.
BOOST_AUTO_TEST_CASE(a_straggler_is_not_planned_for) {
  ModelCosts model;
  model.parts.assign(8, part(10, 20));
  model.speed = {1, 0.5};
  model.latency = 5;
  model.jitter = 0.25;
  const Costs costs = stage_costs(model, straight(2, 1));
  BOOST_TEST(costs.stages[0].forward == 40);
  BOOST_TEST((costs.speed == model.speed));
  BOOST_TEST(costs.latency == 5);
  BOOST_TEST(costs.jitter == 0.25);
}

// F + B of a micro-batch, with what is recomputed, of the rank that has most.
Time most_loaded(const Costs& costs, const Placement& placement) {
  std::vector<Time> ranks(static_cast<std::size_t>(placement.ranks));
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const StageCosts& own = costs.of(stage);
    ranks[placement.rank_of[static_cast<std::size_t>(stage)]] += own.forward + own.recompute + own.backward;
  }
  return *std::ranges::max_element(ranks);
}

// No cut that could be given instead.
BOOST_AUTO_TEST_CASE(no_given_cut_is_better) {
  Random random(7);
  for (int i = 0; i < 200; ++i) {
    ModelCosts model = random_model(random, 7);
    for (StageCosts& each : model.parts) {
      each.recompute = random.between(0, 2) * each.forward;
      each.recompute_activation.reset();
    }
    for (const Placement& placement : {straight(4, 1), v_shape(2), straight(2, 2), two_way(4)}) {
      const Time found = most_loaded(stage_costs(model, placement), placement);
      Time least = std::numeric_limits<Time>::max();
      for (int a = 1; a <= 4; ++a) {
        for (int b = 1; a + b <= 5; ++b) {
          for (int c = 1; a + b + c <= 6; ++c) {
            model.cut = {a, b, c, 7 - a - b - c};
            least = std::min(least, most_loaded(stage_costs(model, placement), placement));
          }
        }
      }
      model.cut.clear();
      BOOST_REQUIRE(found == least);
    }
  }
}

// Whatever the placement, each chain is the whole model.
BOOST_AUTO_TEST_CASE(chains_are_the_model) {
  Random random(5);
  for (int i = 0; i < 300; ++i) {
    const ModelCosts model = random_model(random, static_cast<int>(random.between(1, 7)));
    for (const Placement& placement : {straight(3, 1), straight(2, 2), v_shape(2), two_way(4), straight(1, 1)}) {
      const std::vector<StageCosts> stages = stage_costs(model, placement).stages;
      BOOST_REQUIRE(stages.size() == placement.rank_of.size());
      for (int chain = 0; chain < placement.chains(); ++chain) {
        const std::vector<StageCosts> own(stages.begin() + placement.chain_begin[static_cast<std::size_t>(chain)],
                                          stages.begin() + placement.chain_begin[static_cast<std::size_t>(chain) + 1]);
        BOOST_REQUIRE((sums_of(own) == sums_of(model.parts)));
        BOOST_REQUIRE((largest_of(own) == largest_of(model.parts)));
        BOOST_REQUIRE(own.back().message == model.parts.back().message);
      }
    }
  }
}

// One set of costs times every schedule, and all of them have the same work to do.
BOOST_AUTO_TEST_CASE(one_model_serves_the_catalog) {
  Random random(6);
  for (const test::Case& each : test::small_cases(4, 8)) {
    const ModelCosts model = random_model(random, 4);
    const Program program = lower(generate(each.family, each.shape));
    const Costs costs = stage_costs(model, program.schedule.placement);
    const Timeline timeline = simulate(program, costs);
    Time busy = 0;
    for (const RankTimes& rank : timeline.ranks) busy += rank.busy;
    const Sums sums = sums_of(model.parts);
    // Halves and pairs have durations of their own.
    const auto is_whole = [](Op op) { return op.kind == Kind::forward || op.kind == Kind::backward; };
    const bool all_whole =
        std::ranges::all_of(program.schedule.ops, [&](Op op) { return is_whole(op) && !op.with_next; });
    if (all_whole) BOOST_TEST(busy == each.shape.micro_batches * (sums[0] + sums[1] + sums[4]));
    (void)RankMemories(program, costs);
  }
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_is_named) {
  ModelCosts model;
  BOOST_TEST(refusal_of(model) == "the parts of the model: it is empty; give what each part of the model costs");
  model.parts = {part(1, 2), part(3, 4), part(5, 6)};
  BOOST_TEST(refusal_of(model) == "");
  model.cut = {2, 2};
  BOOST_TEST(refusal_of(model) == "the cut of the model: it has 4 parts, but the model has 3");
  model.cut = {3, 0};
  BOOST_TEST(refusal_of(model) == "the cut of the model: each stage must get a part");
  model.cut = {std::numeric_limits<int>::max(), std::numeric_limits<int>::max()};
  BOOST_TEST(refusal_of(model) == "the cut of the model: it has 4294967294 parts, but the model has 3");
  model.cut = {1, 1, 1};
  BOOST_TEST(refusal_of(model) ==
             "the model is cut for 3 stages, but a chain of the schedule has 2; leave the cut out, or give one for 2 "
             "stages");
  model.cut.clear();
  model.parts[1].backward = -1;
  BOOST_TEST(refusal_of(model) == "part 1: backward_ns is -1 ns; it must be from 0 to 86400000000000 ns, a day");
  model.parts[1] = part(3, 4);
  model.jitter = 1;
  BOOST_TEST(refusal_of(model) == "the jitter must be at least 0 and below 1; 1 is not");
  model.jitter = 0;
  model.speed = {1, 1, 1};
  BOOST_TEST(refusal_of(model) == "speeds are given for 3 ranks, but the schedule has 2; give one for each, or none");
}

// Each figure of all parts together fits into one stage, to the last nanosecond and byte.
BOOST_AUTO_TEST_CASE(sums_at_the_limits) {
  const auto check_sum = [](auto StageCosts::*member, std::int64_t most, const std::string& key) {
    ModelCosts model;
    model.parts.resize(3);
    model.parts[0].*member = most / 2;
    model.parts[1].*member = 0;
    model.parts[2].*member = most - most / 2;
    const auto sum = [&](const Costs& costs) { return std::int64_t(std::optional(costs.stages[0].*member).value()); };
    BOOST_TEST(sum(stage_costs(model, straight(1, 1))) == most);
    BOOST_TEST(stage_costs(model, straight(8, 1)).stages.size() == 8U);
    model.parts[1].*member = 1;
    BOOST_TEST(refusal_of(model) == "the parts of the model: " + key + " is more than " + std::to_string(most) +
                                        " over all parts, the most that one stage may have");
    for (StageCosts& each : model.parts) each.*member = most;
    model.parts.resize(65'535, model.parts[0]);
    BOOST_TEST(refusal_of(model).find(key) != std::string::npos);
  };
  check_sum(&StageCosts::forward, time_max, "forward_ns");
  check_sum(&StageCosts::backward, time_max, "backward_ns");
  check_sum(&StageCosts::input_gradient, time_max, "input_gradient_ns");
  check_sum(&StageCosts::weight_gradient, time_max, "weight_gradient_ns");
  check_sum(&StageCosts::recompute, time_max, "recompute_ns");
  check_sum(&StageCosts::activation, bytes_max, "activation_bytes");
  check_sum(&StageCosts::weight_stash, bytes_max, "weight_stash_bytes");
  check_sum(&StageCosts::parameters, bytes_max, "parameter_bytes");
  check_sum(&StageCosts::gradients, bytes_max, "gradient_bytes");
  check_sum(&StageCosts::optimizer, bytes_max, "optimizer_bytes");
  ModelCosts model;
  model.parts.assign(2, part(1, 1));
  for (StageCosts& each : model.parts) each.overlapped = time_max / 2;
  BOOST_TEST((stage_costs(model, straight(1, 1)).stages[0].overlapped == time_max));
  model.parts[0].overlapped = time_max / 2 + 1;
  BOOST_TEST(refusal_of(model).find("overlapped_ns is more than") != std::string::npos);
  model.parts.assign(2, part(1, 1));
  for (StageCosts& each : model.parts) each.message = each.forward_workspace = bytes_max;  // no sums
  for (StageCosts& each : model.parts) each.overlapped_workspace = -bytes_max;
  BOOST_TEST(refusal_of(model) == "");
}

BOOST_AUTO_TEST_CASE(chains_must_be_alike) {
  ModelCosts model;
  model.parts.assign(4, part(1, 2));
  Placement placement = two_way(2);
  placement.chain_begin = {0, 1, 4};
  placement.weights_of = {0, 1, 2, 3};
  BOOST_TEST(
      refusal_of(model, placement) ==
      "chain 0 of the schedule has 1 stages and chain 1 has 3; the parts of a model can be cut for chains of one "
      "length only: give the costs of the stages");
  placement = two_way(2);
  placement.weights_of = {0, 1, 1, 0};
  BOOST_TEST(
      refusal_of(model, placement) ==
      "stage 2 shares weights with one that is at another place of its chain, but the parts of a model are each at "
      "one; give the costs of the stages");
  placement = straight(2, 1);
  placement.weights_of = {0, 0};
  BOOST_TEST(refusal_of(model, placement).find("stage 1 shares weights") == 0U);
}

BOOST_AUTO_TEST_CASE(costs_of_stages_stay_as_they_are) {
  const Costs costs = test::uniform(1, 2, 3);
  BOOST_TEST((stage_costs(GivenCosts(costs), straight(4, 1)) == costs));
  Costs three = costs;
  three.stages.resize(3);
  BOOST_TEST(refusal([&] { (void)stage_costs(GivenCosts(three), straight(2, 1)); }) ==
             "costs are given for 3 stages, but the schedule has 2; give one entry for all, or 2");
}

// What is said of one stage is of a rank's share, however many stages a schedule makes of it.
BOOST_AUTO_TEST_CASE(costs_of_stages_are_those_of_a_model_on_so_many_ranks) {
  const Costs costs = test::uniform(8, 8, 8);
  const ModelCosts model = of_model(costs, 4);
  BOOST_TEST((model.parts == std::vector<StageCosts>(4, costs.stages[0])));
  BOOST_TEST(stage_costs(model, straight(4, 1)).of(3).forward == 8);
  BOOST_TEST(stage_costs(model, straight(4, 2)).of(7).forward == 4);
  BOOST_TEST(stage_costs(model, two_way(4)).of(7).forward == 8);
  Costs uneven = costs;
  uneven.stages.resize(3, costs.stages[0]);
  BOOST_TEST(of_model(uneven, 4).parts.size() == 3U);
  BOOST_TEST((of_model(model, 2) == model));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
