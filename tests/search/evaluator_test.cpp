// The search's own evaluator says what simulate() says, before and after any moves, and what it holds is what is held.
#include "dualpipe/sim/search/evaluator.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <optional>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/search/dispatch.h"
#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {

using namespace detail::search;

namespace {

// What simulate() says of the order; none where it hangs.
std::optional<Timeline> simulated(const Order& order, const Ops& ops, const Problem& problem, const Costs& costs) {
  const Schedule schedule = schedule_of(order, ops, problem, "order");
  BOOST_REQUIRE(validate(schedule).empty());
  try {
    return simulate(lower(schedule), costs, Record::ranks);
  } catch (const DeadlockError&) {
    return std::nullopt;
  }
}

// Moves units about, and compares every so often.
void move_about(const Problem& problem, const Ops& ops, const Costs& costs, const Order& start, bool by_span,
                Random& random) {
  Evaluator evaluator(problem, ops, by_span);
  Time current = evaluator.reset(start);
  for (int i = 0; i < 60; ++i) {
    const auto timeline = simulated(evaluator.order(), ops, problem, costs);
    BOOST_REQUIRE(timeline.has_value());
    BOOST_TEST(current - problem.launch == (by_span ? timeline->span() : timeline->makespan()));
    const auto any = [&] {
      return evaluator.unit_begin(
          static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(ops.count()) - 1)));
    };
    const std::size_t from = any();
    const std::size_t to = any();
    const int rank = problem.stages[static_cast<std::size_t>(ops.stage(op_of(evaluator.order()[from])))].rank;
    if (from == to || to < ops.begin(rank) || to >= ops.end(rank) || !evaluator.may_move(rank, from, to)) continue;
    const Order before = evaluator.order();
    const Time most = random.one_in(3) ? current : Evaluator::hangs;
    const Time makespan = evaluator.move(rank, from, to, most);
    const auto moved = simulated(evaluator.order(), ops, problem, costs);
    const Time truth = moved ? (by_span ? moved->span() : moved->makespan()) + problem.launch : Evaluator::hangs;
    BOOST_TEST(makespan == (truth <= most ? truth : Evaluator::hangs));
    BOOST_TEST(holds_no_more(evaluator.order(), ops, problem));
    if (makespan == Evaluator::hangs || random.one_in(4)) {
      evaluator.undo();
      BOOST_TEST(evaluator.order() == before);
    } else {
      evaluator.accept();
      current = makespan;
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(search_evaluator)

BOOST_AUTO_TEST_CASE(says_what_simulate_says) {
  Random random(31);
  Thinned thinned(20);
  for (const Case& each : small_cases(4, 6)) {
    if (!thinned.next() || (!slow && random.one_in(2))) continue;
    Schedule schedule = generate(each.family, each.shape);
    const auto model = random.one_in(2) ? CommunicationModel::latency : CommunicationModel::links;
    const Costs costs = random_run_costs(random, schedule.placement, model);
    const Problem problem = problem_of(schedule.placement, schedule.micro_batches, costs, std::nullopt);
    const Ops ops(problem);
    BOOST_TEST_CONTEXT(each.family << " on " << each.shape.ranks << " ranks, " << each.shape.micro_batches) {
      move_about(problem, ops, costs, order_of(schedule, ops, problem), random.one_in(4), random);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_schedule_stays_what_it_is) {
  const Schedule schedule = generate("zbv", {.ranks = 4, .micro_batches = 9});
  const Problem problem = problem_of(schedule.placement, 9, uniform(3, 4, 2), std::nullopt);
  const Ops ops(problem);
  BOOST_CHECK(schedule_of(order_of(schedule, ops, problem), ops, problem, schedule.name) == schedule);
}

// Two ops, each of which waits for the other.
BOOST_AUTO_TEST_CASE(finds_that_an_order_hangs) {
  const Schedule schedule = schedule_of(straight(2, 1), {{"0F0 0I0 0W0 0F1 0I1 0W1"}, {"1F0 1F1 1I0 1W0 1I1 1W1"}});
  const Problem problem = problem_of(schedule.placement, 2, uniform(1, 1, 1), std::nullopt);
  const Ops ops(problem);
  BOOST_TEST(Evaluator(problem, ops).reset(order_of(schedule, ops, problem)) == Evaluator::hangs);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
