// A candidate's figures are those of the steps taken one by one; many at once are the same, in order, on any number of
// threads.
#include "dualpipe/sim/evaluate/evaluate.h"

#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::evaluate::ahead_max;

namespace {

// Of the stages, or of a model whose parts make them.
GivenCosts costs_of(const Case& each, Random& random) {
  const Placement placement = generate(each.family, each.shape).placement;
  Costs costs = random_costs(random, placement, static_cast<CommunicationModel>(random.between(0, 2)));
  if (random.one_in(2)) return costs;
  ModelCosts model;
  static_cast<MachineCosts&>(model) = costs;
  model.parts = std::move(costs.stages);
  return model;
}

std::vector<Request> requests_of(int ranks_max, std::int64_t micro_batches_max) {
  Random random(3);
  std::vector<Request> requests;
  for (const Case& each : small_cases(ranks_max, micro_batches_max)) {
    requests.push_back({.family = std::string(each.family), .shape = each.shape, .costs = costs_of(each, random)});
  }
  return requests;
}

std::string error_of(const Outcome& outcome) {
  try {
    (void)outcome.evaluation();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

// Figures, or the error.
bool same(const Outcome& a, const Outcome& b) {
  if (a.succeeded() != b.succeeded()) return false;
  return a.succeeded() ? a.evaluation() == b.evaluation() : error_of(a) == error_of(b);
}

Evaluation numbered(std::size_t number) {
  Evaluation evaluation;
  evaluation.stages = static_cast<int>(number);
  return evaluation;
}

BOOST_AUTO_TEST_SUITE(evaluate_evaluate)

BOOST_AUTO_TEST_CASE(is_the_single_steps) {
  for (const Request& request : requests_of(5, 10)) {
    BOOST_TEST_CONTEXT(request.family << " " << request.shape.ranks << "x" << request.shape.micro_batches) {
      const Schedule schedule = generate(request);
      const Program program = lower(schedule);
      const Costs costs = stage_costs(request.costs, schedule.placement);
      const Timeline timeline = simulate(program, costs);  // with spans, which change no figure
      const Evaluation found = evaluate(request);
      BOOST_TEST((found == evaluate(schedule, costs)));
      BOOST_TEST(found.stages == schedule.placement.stages());
      BOOST_TEST((found.timeline.ranks == timeline.ranks));
      BOOST_TEST(found.timeline.reduced == timeline.reduced);
      BOOST_TEST(found.timeline.ops.empty());
      BOOST_TEST(found.timeline.communication.empty());
      BOOST_TEST((found.memory == memory_of_ranks(program, costs)));
    }
  }
}

// The figures over all ranks, against a loop over the ranks.
BOOST_AUTO_TEST_CASE(figures_over_the_ranks) {
  for (const Request& request : requests_of(4, 8)) {
    const Evaluation found = evaluate(request);
    const Timeline& timeline = found.timeline;
    Time by_makespan = 0, by_span = 0;
    Bytes memory = 0;
    int parameters = 0;
    std::set<int> activations;
    for (int rank = 0; rank < request.shape.ranks; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      by_makespan = std::max(by_makespan, timeline.idle(rank));
      by_span = std::max(by_span, timeline.span() - timeline.ranks[r].busy);
      memory = std::max(memory, found.memory[r].peak);
      parameters = std::max(parameters, found.memory[r].parameters);
      activations.insert(found.memory[r].peak_activations);
    }
    BOOST_TEST(found.bubble_by_makespan() == by_makespan);
    BOOST_TEST(found.bubble_by_span() == by_span);
    BOOST_TEST(found.peak_memory() == memory);
    BOOST_TEST(found.parameters() == parameters);
    BOOST_TEST(found.peak_activations_least() == *activations.begin());
    BOOST_TEST(found.peak_activations_most() == *activations.rbegin());
  }
}

BOOST_AUTO_TEST_CASE(threads_make_no_difference) {
  std::vector<Request> requests = requests_of(4, 8);
  requests[5].family = "2f2b";
  requests[17].shape.ranks = 0;
  requests.push_back({.family = "dualpipe", .shape = {5, 20}, .costs = uniform(1, 1, 1)});
  const auto alone = evaluate_all(requests, 1);
  BOOST_TEST_REQUIRE(alone.size() == requests.size());
  BOOST_TEST(std::ranges::count_if(alone, &Outcome::succeeded) == std::ssize(requests) - 3);
  for (const unsigned threads : {0U, 2U, 4U, 13U}) {
    const auto together = evaluate_all(requests, threads);
    BOOST_TEST(std::ranges::equal(alone, together, same), threads << " threads");
  }
}

// What one candidate throws is its own outcome, whatever it is.
BOOST_AUTO_TEST_CASE(a_candidate_that_fails) {
  const Costs costs = uniform(1, 1, 1);
  const std::vector<Request> requests{{.family = "1f1b", .shape = {4, 8}, .costs = costs},
                                      {.family = "dualpipe", .shape = {5, 20}, .costs = costs},
                                      {.family = "zb1p", .shape = {4, 8}},  // no costs
                                      {.family = "zb1p", .shape = {4, 8}, .costs = costs}};
  for (const unsigned threads : {1U, 4U}) {
    const auto outcomes = evaluate_all(requests, threads);
    BOOST_TEST_REQUIRE(outcomes.size() == 4U);
    BOOST_TEST(outcomes[0].succeeded());
    BOOST_CHECK_THROW((void)outcomes[1].evaluation(), ShapeError);
    BOOST_TEST(error_of(outcomes[1]) ==
               "dualpipe: the number of ranks must be even, and 5 is not; nearest that work: 4 or 6 ranks");
    BOOST_CHECK_THROW((void)outcomes[2].evaluation(), InputError);
    BOOST_TEST(outcomes[3].evaluation().timeline.makespan() == evaluate(requests[3]).timeline.makespan());
  }
  // Rank 1 waits for rank 0, which waits for rank 1.
  const Schedule hanging = schedule_of(straight(2, 1), {"0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"});
  BOOST_CHECK_THROW((void)evaluate(hanging, costs), DeadlockError);
}

// In order, one at a time, each as soon as it is done: a first one that takes long holds up the others, and not too
// many of them.
BOOST_AUTO_TEST_CASE(taken_in_order) {
  constexpr std::size_t count = 5'000;
  std::atomic<std::size_t> begun = 0;
  std::atomic<std::size_t> taken = 0;
  std::atomic<std::size_t> ahead_most = 0;
  const auto evaluate_one = [&](std::size_t i) {
    ++begun;
    if (i == 0) {  // until the others may not go on, and a moment more, in which they would
      while (begun < ahead_max) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    const std::size_t taken_now = taken;
    if (i > taken_now && i - taken_now > ahead_most) ahead_most = i - taken_now;
    if (i % 7 == 0) throw InputError(std::to_string(i));
    return numbered(i);
  };
  std::vector<std::size_t> order;
  const auto take = [&](std::size_t i, const Outcome& outcome) {
    order.push_back(i);
    ++taken;
    if (i % 7 == 0) {
      BOOST_TEST(error_of(outcome) == std::to_string(i));
    } else {
      BOOST_TEST(outcome.evaluation().stages == static_cast<int>(i));
    }
  };
  evaluate_each(count, evaluate_one, take, 4);
  BOOST_TEST_REQUIRE(order.size() == count);
  for (std::size_t i = 0; i < count; ++i) BOOST_TEST_REQUIRE(order[i] == i);
  BOOST_TEST(ahead_most == ahead_max - 1);
}

// One thread is the caller's own.
BOOST_AUTO_TEST_CASE(one_thread_is_a_plain_loop) {
  std::vector<std::thread::id> threads;
  const auto note = [&](std::size_t i) {
    threads.push_back(std::this_thread::get_id());
    return numbered(i);
  };
  evaluate_each(
      3, note, [&](std::size_t, const Outcome&) { threads.push_back(std::this_thread::get_id()); }, 1);
  BOOST_TEST((threads == std::vector(6, std::this_thread::get_id())));
}

BOOST_AUTO_TEST_CASE(no_candidates) {
  BOOST_TEST(evaluate_all({}).empty());
  evaluate_each(
      0, [](std::size_t) -> Evaluation { throw std::logic_error("none"); }, [](std::size_t, const Outcome&) {});
}

// Whoever takes has had enough: no more is begun, and nobody hangs.
BOOST_AUTO_TEST_CASE(taking_may_throw) {
  for (const unsigned threads : {1U, 4U}) {
    std::atomic<int> evaluated = 0;
    int taken = 0;
    const auto evaluate_one = [&](std::size_t i) {
      ++evaluated;
      return numbered(i);
    };
    const auto take = [&](std::size_t, const Outcome&) {
      if (++taken == 10) throw std::runtime_error("enough");
    };
    BOOST_CHECK_EXCEPTION(evaluate_each(100'000, evaluate_one, take, threads), std::runtime_error,
                          [](const auto& error) { return std::string(error.what()) == "enough"; });
    BOOST_TEST(taken == 10);
    BOOST_TEST(evaluated < 5'000);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
