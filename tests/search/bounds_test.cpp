// No bound is above an optimum: those that a solver has proven, and those of tiny shapes that are gone through here.
#include "dualpipe/sim/search/bounds.h"

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <vector>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "tests/search/exact.h"
#include "tests/search/optima.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

// A tiny shape, its costs, and what each rank may hold, all drawn.
struct Tiny {
  Placement placement;
  int micro_batches = 1;
  Costs costs;
  Bytes limit = 0;
};

Tiny tiny(Random& random) {
  Tiny tiny;
  const bool is_v = random.one_in(3);
  const auto ranks = static_cast<int>(random.between(1, is_v ? 2 : 3));
  tiny.placement = is_v ? v_shape(ranks) : straight(ranks, ranks == 1 || (ranks == 2 && random.one_in(4)) ? 2 : 1);
  tiny.micro_batches = static_cast<int>(random.between(1, tiny.placement.stages() > 3 ? 2 : 3));
  tiny.costs.latency = random.one_in(2) ? 0 : random.between(0, 6);
  const bool is_uneven = random.one_in(2);
  Bytes most = 0;
  for (int s = 0; s < (is_uneven ? tiny.placement.stages() : 1); ++s) {
    StageCosts stage;
    stage.forward = random.between(1, 9);
    stage.input_gradient = random.between(1, 9);
    stage.weight_gradient = random.between(0, 9);
    stage.backward = stage.input_gradient + stage.weight_gradient;
    stage.activation = random.between(1, 5);
    stage.weight_stash = random.between(0, stage.activation);
    most = std::max(most, stage.activation);
    tiny.costs.stages.push_back(stage);
  }
  const auto per_rank = static_cast<std::int64_t>(tiny.placement.stages() / ranks);
  tiny.limit = random.between(most * per_rank, most * per_rank * tiny.micro_batches + 1);
  return tiny;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(search_bounds)

BOOST_DATA_TEST_CASE(is_no_more_than_what_a_solver_has_proven, optima()) {
  const auto bounds = lower_bounds(sample.placement, sample.micro_batches, sample.costs, MemoryLimit(sample.limit));
  const Time bound = sample.by_span ? bounds.span : bounds.makespan;
  BOOST_TEST(bound <= sample.optimum);
  BOOST_TEST(bound == sample.bound);
}

BOOST_AUTO_TEST_CASE(is_reached_by_most_of_them) {
  const auto reached = std::ranges::count_if(optima(), [](const Optimum& each) { return each.bound == each.optimum; });
  BOOST_TEST(optima().size() == 257U);
  BOOST_TEST(reached == 240);
}

BOOST_AUTO_TEST_CASE(is_no_more_than_the_best_of_all_orders) {
  Random random(18);
  Thinned thinned(50);
  int feasible = 0;
  int reached = 0;
  for (int i = 0; i < 10'000; ++i) {
    const Tiny each = tiny(random);
    if (!thinned.next()) continue;
    const std::vector<Bytes> limits(static_cast<std::size_t>(each.placement.ranks), each.limit);
    const Exact best = exact(each.placement, each.micro_batches, each.costs, limits);
    if (best.makespan == 0) continue;
    const LowerBounds bounds = lower_bounds(each.placement, each.micro_batches, each.costs, MemoryLimit(each.limit));
    BOOST_TEST_CONTEXT("case " << i) {
      BOOST_TEST(bounds.makespan <= best.makespan);
      BOOST_TEST(bounds.span <= best.span);
    }
    ++feasible;
    if (bounds.makespan == best.makespan) ++reached;
  }
  BOOST_TEST(feasible > 100);
  BOOST_TEST(reached > feasible / 2);
}

// Of placements, costs and communication of any kind: no schedule of the catalog is shorter, at what it holds itself.
BOOST_AUTO_TEST_CASE(is_no_more_than_any_schedule_takes) {
  Random random(19);
  for (const Case& each : small_cases(4, 6)) {
    const Schedule schedule = generate(each.family, each.shape);
    const auto model = static_cast<CommunicationModel>(random.between(0, 2));
    const Costs costs = random_run_costs(random, schedule.placement, model);
    const bool knows_pairs =
        std::ranges::any_of(costs.stages, [](const StageCosts& stage) { return stage.overlapped.has_value(); });
    if (has_pairs(schedule) && !knows_pairs) continue;  // they would be taken for one op, with one launch
    const Evaluation evaluation = evaluate(schedule, costs);
    const LowerBounds bounds = lower_bounds(schedule.placement, schedule.micro_batches, costs,
                                            MemoryLimit(std::max<Bytes>(evaluation.peak_memory(), 0)));
    BOOST_TEST_CONTEXT(each.family << " on " << each.shape.ranks << " ranks, " << each.shape.micro_batches) {
      BOOST_TEST(bounds.makespan <= evaluation.timeline.makespan());
      BOOST_TEST(bounds.span <= evaluation.timeline.span());
      // And of the same activations.
      const auto needed = memory_needed(lower(schedule), costs, MemoryLimit::Unit::micro_batches);
      const MemoryLimit most = *std::ranges::max_element(needed, {}, &MemoryLimit::amount);
      const LowerBounds by_count = lower_bounds(schedule.placement, schedule.micro_batches, costs, most);
      BOOST_TEST(by_count.makespan <= evaluation.timeline.makespan());
      BOOST_TEST(by_count.span <= evaluation.timeline.span());
    }
  }
}

BOOST_AUTO_TEST_CASE(jitter_is_refused) {
  Costs costs;
  costs.stages.resize(1);
  costs.jitter = 0.1;
  BOOST_CHECK_THROW((void)lower_bounds(straight(2, 1), 4, costs), InputError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
