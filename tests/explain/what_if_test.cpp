// What would help: each answer is a simulation of the changed run.
#include "dualpipe/sim/explain/what_if.h"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "dualpipe/sim/explain/earlier.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

std::optional<WhatIf> found(const std::vector<WhatIf>& answers, std::string_view change) {
  const auto at = std::ranges::find(answers, change, &WhatIf::change);
  return at == answers.end() ? std::nullopt : std::optional(*at);
}

std::vector<WhatIf> answers_of(const Program& program, const GivenCosts& given, const Costs& costs,
                               std::optional<Shape> shape = {}, unsigned threads = 0) {
  const Explanation explanation = explain(program, costs, simulate(program, costs));
  return what_if({.program = program, .given = given, .costs = costs, .explanation = explanation, .shape = shape},
                 threads);
}

// The zero-bubble authors' scheduler at the durations of their 6.2B model.
struct Zb1p {
  Zb1p() {
    costs.stages[0].activation = 1000;
    costs.stages[0].weight_stash = 366;
    program = lower(generate(
        {.family = "zb-auto", .shape = {8, 24}, .costs = costs, .memory_limit = MemoryLimit::micro_batches(8)}));
  }
  Costs costs = uniform(18522, 18086, 9337, 601);
  Program program;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(explain_what_if)

BOOST_AUTO_TEST_CASE(zb1p_gains_most_by_faster_forwards) {
  const Zb1p zb1p;
  const auto answers = answers_of(zb1p.program, zb1p.costs, zb1p.costs);
  const auto permille = [&](std::string_view change) {
    return std::lround(found(answers, change).value().gain * 1000);
  };
  BOOST_TEST(permille("F of all stages 10 % faster") == 42);
  BOOST_TEST(permille("W of all stages 10 % faster") == 12);
  BOOST_TEST(permille("half the latency") == 6);
}

// An op made faster by a tenth gains at most a tenth of what of it is on the path: the makespan is convex.
BOOST_AUTO_TEST_CASE(an_answer_is_a_fresh_simulation_and_gains_no_more_than_is_on_the_path) {
  Random random(23);
  const auto cases = small_cases(4, 8);
  for (int i = 0; i < 60; ++i) {
    const Case& each = cases[static_cast<std::size_t>(random.between(0, std::ssize(cases) - 1))];
    const Program program = lower(generate(each.family, each.shape));
    Costs costs =
        random_costs(random, program.schedule.placement, static_cast<CommunicationModel>(random.between(0, 2)));
    for (StageCosts& stage : costs.stages) {
      for (Time StageCosts::*time : {&StageCosts::forward, &StageCosts::backward, &StageCosts::input_gradient,
                                     &StageCosts::weight_gradient, &StageCosts::recompute}) {
        stage.*time *= 10;
      }
      if (stage.overlapped) *stage.overlapped *= 10;
    }
    const Timeline timeline = simulate(program, costs);
    const Explanation explanation = explain(program, costs, timeline);
    BOOST_TEST_CONTEXT(each << ", " << costs.model) {
      const auto answers = answers_of(program, costs, costs, each.shape);
      for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
        Costs changed = costs;
        changed.stages[stage].forward = changed.stages[stage].forward / 10 * 9;
        const Time makespan = simulate(program, changed).makespan();
        Time on_path = 0;
        for (const PathStep& step : explanation.path) {
          if (step.kind == PathStep::Kind::op && step.op.stage == stage && step.op.kind == Kind::forward)
            on_path += step.span.end - step.span.start;
        }
        const auto answer = found(answers, "F of stage " + std::to_string(stage) + " 10 % faster");
        if (!has_pairs(program.schedule)) {
          BOOST_TEST(timeline.makespan() - makespan <= on_path / 10);
          // Where there is no answer, nothing is to be gained.
          BOOST_TEST(answer.has_value() == (on_path > 0));
        }
        BOOST_TEST((answer ? answer->makespan : timeline.makespan()) == makespan);
      }
      for (std::size_t at = 1; at < answers.size(); ++at) BOOST_TEST(answers[at - 1].gain >= answers[at].gain);
      BOOST_TEST((answers_of(program, costs, costs, each.shape, 1) == answers));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_boundary_moves_by_a_part) {
  ModelCosts model;
  for (const Time time : {10, 10, 10, 40}) model.parts.push_back(uniform(time, time, time).stages[0]);
  model.cut = {1, 3};
  const Program program = lower(generate("1f1b", {2, 8}));
  const auto answers = answers_of(program, model, stage_costs(model, program.schedule.placement));
  ModelCosts better = model;
  better.cut = {2, 2};
  const Costs costs = stage_costs(better, program.schedule.placement);
  BOOST_TEST(found(answers, "a part of stage 1 moved to stage 0").value().makespan ==
             simulate(program, costs).makespan());
  BOOST_TEST(!found(answers, "a part of stage 0 moved to stage 1").has_value());
}

BOOST_AUTO_TEST_CASE(more_micro_batches_are_compared_by_the_time_of_one) {
  const Program program = lower(generate("1f1b", {4, 8}));
  const Costs costs = uniform(1, 1, 1);
  const auto more = found(answers_of(program, costs, costs, Shape{4, 8}), "1 more micro-batch").value();
  BOOST_TEST(more.makespan == 36);  // (9 + 3) * 3
  BOOST_TEST(std::abs(more.gain - (1 - 36.0 / 9 / (33.0 / 8))) < 1e-12);
  BOOST_TEST(!found(answers_of(program, costs, costs), "1 more micro-batch").has_value());
}

BOOST_AUTO_TEST_CASE(other_schedules_keep_the_memory_limit) {
  const Program program = lower(generate("1f1b", {4, 8}));
  const Costs costs = uniform(1, 1, 1);
  const Explanation explanation = explain(program, costs, simulate(program, costs));
  WhatIfBase base{.program = program, .given = costs, .costs = costs, .explanation = explanation};
  BOOST_TEST(found(what_if(base), "as zb-h2").has_value());
  base.memory_limit = MemoryLimit::micro_batches(4);
  BOOST_TEST(!found(what_if(base), "as zb-h2").has_value());
  BOOST_TEST(found(what_if(base), "as zb1p").has_value());
}

BOOST_AUTO_TEST_CASE(earlier_receives_are_those_of_the_slot_before) {
  const Program program = program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 [0SEND_F1 0RECV_B0] 0B0 0RECV_B1 0B1",
                                                      "1RECV_F0 1F0 1B0 [1SEND_B0 1RECV_F1] 1F1 1B1 1SEND_B1"});
  const Program expected = program_of(straight(2, 1), {"0F0 [0SEND_F0 0RECV_B0] 0F1 [0SEND_F1 0RECV_B1] 0B0 0B1",
                                                       "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1"});
  BOOST_TEST((detail::explain::with_earlier_receives(program) == expected));
  for (const Case& each : small_cases(4, 6)) {
    const Program earlier = detail::explain::with_earlier_receives(lower(generate(each.family, each.shape)));
    BOOST_TEST(validate(earlier).empty(), each);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
