#include "dualpipe/sim/explain/measured_costs.h"

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <vector>

#include "dualpipe/sim/explain/measured_passes.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::explain::complete;
using detail::explain::PassFigures;

BOOST_AUTO_TEST_SUITE(explain_measured_costs)

// A run that took the simulator's times gives back the costs that it was simulated with, as far as its ops tell.
BOOST_AUTO_TEST_CASE(a_simulated_run_gives_its_costs_back) {
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Program program = lower(generate(each.family, each.shape));
      const Schedule& schedule = program.schedule;
      Costs costs = uniform(5000, 6000, 4000, 70, 13'000);
      costs.launch = 20;
      costs.stages.resize(schedule.placement.rank_of.size(), costs.stages[0]);
      for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
        // All unlike: of what ends at the same moment nobody can tell which an op waited for.
        costs.stages[stage].forward += static_cast<Time>(stage) * 101;
        costs.stages[stage].backward += static_cast<Time>(stage) * 37;
        costs.stages[stage].input_gradient += static_cast<Time>(stage) * 37;
      }
      const Timeline timeline = simulate(program, costs);
      const MeasuredCosts found = measured_costs(program, timeline);
      std::vector<bool> ran_alone(costs.stages.size());
      for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
        const Op op = schedule.ops[i];
        if (op.kind == Kind::forward && !op.with_next) ran_alone[op.stage] = true;
      }
      for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
        const StageCosts& of_stage = found.costs.stages[stage];
        if (ran_alone[stage]) BOOST_TEST(of_stage.forward == costs.stages[stage].forward);
        BOOST_TEST(of_stage.forward > 0);
      }
      BOOST_TEST(simulate(program, found.costs).makespan() == timeline.makespan());
    }
  }
}

BOOST_AUTO_TEST_CASE(what_a_stage_never_ran_by_itself_is_the_others) {
  std::vector<PassFigures> parts(3);
  parts[0] = {.forward = 10, .input_gradient = 12, .weight_gradient = 8};
  parts[1] = {.pair = 27, .pair_back = 30};  // all of its passes ran in pairs
  parts[2] = {.forward = 14, .backward = 30};
  BOOST_TEST(!complete(parts));
  BOOST_TEST(parts[0].backward.value() == 20);
  BOOST_TEST(parts[1].forward.value() == 12);
  BOOST_TEST(parts[1].backward.value() == 25);
  BOOST_TEST(parts[1].input_gradient.value() == 15);
  BOOST_TEST(parts[2].input_gradient.value() == 18);
  BOOST_TEST(parts[2].weight_gradient.value() == 12);
}

BOOST_AUTO_TEST_CASE(pairs_alone_are_a_third_and_two_thirds) {
  std::vector<PassFigures> parts(1);
  parts[0] = {.pair = 27, .pair_back = 30};
  BOOST_TEST(complete(parts));
  BOOST_TEST(parts[0].forward.value() == 9);
  BOOST_TEST(parts[0].backward.value() == 20);
  BOOST_TEST(parts[0].input_gradient.value() == 10);
  BOOST_TEST(parts[0].weight_gradient.value() == 10);
}

BOOST_AUTO_TEST_CASE(of_forwards_alone_nothing_is_guessed) {
  std::vector<PassFigures> parts(2);
  parts[1].forward = 7;
  BOOST_TEST(!complete(parts));
  BOOST_TEST(parts[0].forward.value() == 7);
  BOOST_TEST(!parts[0].backward.has_value());
  BOOST_TEST(!parts[0].input_gradient.has_value());
}

// What goes by while a message is on its way is no time between ops, whatever its rank ran until just before it came.
BOOST_AUTO_TEST_CASE(messages_are_no_launch) {
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    const Timeline timeline = simulate(program, uniform(7'000, 9'000, 5'000, 300, 17'000));
    BOOST_TEST_CONTEXT(each) { BOOST_TEST(measured_costs(program, timeline).costs.launch == 0); }
  }
}

BOOST_AUTO_TEST_CASE(of_two_in_the_middle_the_mean) {
  BOOST_TEST(!detail::explain::median({}).has_value());
  BOOST_TEST(detail::explain::median({7}).value() == 7);
  BOOST_TEST(detail::explain::median({9, 1, 4}).value() == 4);
  BOOST_TEST(detail::explain::median({10, 1, 4, 900}).value() == 7);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
