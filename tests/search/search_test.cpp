// What a search finds is as good as is proven, is what it says it is, and is the same on any number of threads.
#include "dualpipe/sim/search/search.h"

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "tests/search/optima.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

// Costs of stages, which a search takes for a rank's share: parts of a model, one for each stage.
GivenCosts of_stages(const Costs& costs, int stages) {
  ModelCosts model;
  static_cast<MachineCosts&>(model) = costs;
  model.parts.assign(static_cast<std::size_t>(stages), costs.stages[0]);
  return model;
}

SearchRequest small_request() {
  SearchRequest request;
  request.ranks = 4;
  request.micro_batches = 8;
  Costs costs = uniform(1000, 1200, 800, 50);
  costs.stages[0].activation = 100;
  costs.stages[0].weight_stash = 40;
  request.costs = costs;
  request.memory_limit = MemoryLimit(300);
  request.evaluations = slow ? 2'000 : 20'000;
  return request;
}

// The micro-batches of a stage's Is, or Ws, in their order.
std::vector<std::uint32_t> micro_batches_of(const Schedule& schedule, std::uint16_t stage, Kind kind) {
  std::vector<std::uint32_t> micro_batches;
  for (const Op op : schedule.ops) {
    if (op.stage == stage && op.kind == kind) micro_batches.push_back(op.micro_batch);
  }
  return micro_batches;
}

// The figures are those of simulate(), and the schedule keeps every rule and the limit.
void check_result(const SearchRequest& request, const SearchResult& result) {
  const Schedule& schedule = result.schedule;
  BOOST_TEST(validate(schedule).empty());
  for (std::uint16_t stage = 0; stage < schedule.placement.stages(); ++stage) {
    BOOST_CHECK(micro_batches_of(schedule, stage, Kind::input_gradient) ==
                micro_batches_of(schedule, stage, Kind::weight_gradient));
  }
  const Lowered lowered = lower_checked(schedule);
  BOOST_TEST(lowered.completes);
  const Evaluation evaluation = evaluate(lowered.program, result.costs);
  BOOST_TEST(result.makespan == evaluation.timeline.makespan());
  BOOST_TEST(result.span == evaluation.timeline.span());
  BOOST_TEST(result.peak_memory == evaluation.peak_memory());
  BOOST_TEST(result.value(request.objective) >= result.lower_bound);
  if (request.memory_limit) check_memory_limit(lowered.program, result.costs, *request.memory_limit);
  for (const SearchRow& row : result.catalog) {
    const Time value = request.objective == SearchObjective::span ? row.span : row.makespan;
    const bool is_better = row.fits && value < result.value(request.objective);
    BOOST_TEST(!(is_better && request.placement == SearchPlacement::any));
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(search_search)

// Of those that are small enough to be quick; all of them: docs/search.md.
BOOST_AUTO_TEST_CASE(reaches_what_a_solver_has_proven) {
  Thinned thinned(12);
  std::size_t count = 0;
  for (const Optimum& each : optima()) {
    if (each.by_span || each.micro_batches > 6 || count++ % (each.bound == each.optimum ? 7 : 9) != 0) continue;
    if (!thinned.next()) continue;
    SearchRequest request;
    request.ranks = each.placement.ranks;
    request.micro_batches = each.micro_batches;
    request.costs = of_stages(each.costs, each.placement.stages());
    request.memory_limit = MemoryLimit(each.limit);
    request.placement = each.placement.stages() > request.ranks ? SearchPlacement::v : SearchPlacement::linear;
    request.evaluations = 1'000'000;
    const SearchResult result = search(request);
    BOOST_TEST_CONTEXT(each.line) {
      BOOST_TEST(result.makespan == each.optimum);
      check_result(request, result);
    }
  }
}

// Where the catalog is 3.9 % longer: by a cyclic schedule.
BOOST_AUTO_TEST_CASE(reaches_the_bound_where_memory_is_short) {
  if (slow) return;  // minutes without optimisation
  SearchRequest request;
  request.ranks = 8;
  request.micro_batches = 24;
  request.costs = of_stages(uniform(1, 1, 1, 0), 2 * request.ranks);
  request.memory_limit = MemoryLimit::micro_batches(6);
  request.placement = SearchPlacement::v;
  const SearchResult result = search(request);
  BOOST_TEST(result.makespan == result.lower_bound);
  check_result(request, result);
}

BOOST_AUTO_TEST_CASE(is_the_same_on_any_number_of_threads) {
  for (const SearchObjective objective : {SearchObjective::makespan, SearchObjective::span}) {
    SearchRequest request = small_request();
    request.objective = objective;
    request.threads = 1;
    const SearchResult one = search(request);
    request.threads = 3;
    const SearchResult three = search(request);
    BOOST_CHECK(one.schedule == three.schedule);
    BOOST_TEST(one.evaluations == three.evaluations);
    BOOST_TEST(one.origin == three.origin);
    check_result(request, one);
  }
}

// Bytes of every kind count, under each model of communication, with uneven stages.
BOOST_AUTO_TEST_CASE(keeps_a_limit_of_all_that_is_held) {
  Random random(41);
  for (int i = 0; i < (slow ? 3 : 10); ++i) {
    SearchRequest request;
    request.ranks = static_cast<int>(random.between(1, 4));
    request.micro_batches = random.between(1, 4) * 2;
    const auto model = static_cast<CommunicationModel>(random.between(0, 2));
    Costs costs = random_run_costs(random, straight(2 * request.ranks, 1), model);
    costs.speed.clear();
    ModelCosts parts;
    static_cast<MachineCosts&>(parts) = costs;
    parts.parts = costs.stages;
    request.costs = parts;
    request.evaluations = 0;
    request.objective = random.one_in(3) ? SearchObjective::span : SearchObjective::makespan;
    const SearchResult free = search(request);
    check_result(request, free);
    request.memory_limit = MemoryLimit(free.peak_memory * 4 / 5);
    request.evaluations = 1'500;
    try {
      check_result(request, search(request));
    } catch (const MemoryLimitError& error) {
      request.memory_limit = error.least();
      check_result(request, search(request));
    }
  }
}

BOOST_AUTO_TEST_CASE(without_a_budget_it_is_the_best_of_the_catalog) {
  SearchRequest request = small_request();
  request.evaluations = 0;
  const SearchResult result = search(request);
  BOOST_TEST(result.origin != "search");
  const auto best = std::ranges::find(result.catalog, true, &SearchRow::fits);
  BOOST_REQUIRE(best != result.catalog.end());
  BOOST_TEST(result.origin == best->schedule);
  BOOST_TEST(result.makespan == best->makespan);
}

BOOST_AUTO_TEST_CASE(a_limit_that_nothing_keeps_is_refused_with_the_least_that_works) {
  SearchRequest request = small_request();
  request.memory_limit = MemoryLimit(99);
  try {
    (void)search(request);
    BOOST_ERROR("found something");
  } catch (const MemoryLimitError& error) {
    BOOST_TEST(error.least().amount == 100);
    request.memory_limit = error.least();
  }
  check_result(request, search(request));
}

BOOST_AUTO_TEST_CASE(keeps_what_it_has_when_it_is_stopped) {
  SearchRequest request = small_request();
  request.evaluations = 1'000'000'000;
  int asked = 0;
  std::vector<Time> found;
  SearchHooks hooks;
  request.threads = 1;
  hooks.stopped = [&] { return ++asked > 100; };
  hooks.found = [&](const SearchResult& result) { found.push_back(result.makespan); };
  const SearchResult result = search(request, hooks);
  check_result(request, result);
  BOOST_TEST(std::ranges::is_sorted(found, std::greater()));
  if (!found.empty()) BOOST_TEST(found.back() == result.makespan);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_is_refused) {
  SearchRequest request = small_request();
  request.ranks = 3;
  request.placement = SearchPlacement::two_way;
  BOOST_CHECK_THROW((void)search(request), ShapeError);
  request.ranks = 0;
  BOOST_CHECK_THROW((void)search(request), InputError);
  request = small_request();
  std::get<Costs>(request.costs).jitter = 0.1;
  BOOST_CHECK_THROW((void)search(request), InputError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
