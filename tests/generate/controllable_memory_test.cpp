// What V-Half and V-Min are known for: what they hold, how long they idle, and where the steady state stalls.
#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

Timeline run(std::string_view family, const Shape& shape, const Costs& costs) {
  return simulate(lower(generate(family, shape)), costs, Record::ranks);
}

Time idle(const Timeline& timeline, Time cost) {
  return cost - std::ranges::min_element(timeline.ranks, {}, &RankTimes::busy)->busy;
}

// Of every rank, in activations of one stage, of which a rank has two for each micro-batch. W frees all of it.
std::vector<Bytes> peaks(std::string_view family, const Shape& shape) {
  Costs costs = uniform(1, 1, 1);
  costs.stages[0].activation = costs.stages[0].weight_stash = 1;
  std::vector<Bytes> peaks;
  for (const RankMemory& rank : memory_of_ranks(lower(generate(family, shape)), costs)) peaks.push_back(rank.peak);
  return peaks;
}

std::vector<std::int64_t> batches_for(int ranks) { return {ranks + 2, 2 * ranks + 3, 4 * ranks}; }

// How much longer a step takes with one micro-batch more, far from both ends: over a multiple of every period there is.
Time steady_time(std::string_view family, int ranks, const Costs& costs) {
  constexpr std::int64_t more = 12;
  const std::int64_t enough = 10 * ranks;
  const Time longer = run(family, {ranks, enough + more}, costs).makespan();
  const Time time = longer - run(family, {ranks, enough}, costs).makespan();
  BOOST_TEST_REQUIRE(time % more == 0);
  return time / more;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(generate_controllable_memory)

BOOST_DATA_TEST_CASE(hold_a_half_and_a_third, data::xrange(2, 33), ranks) {
  for (const std::int64_t micro_batches : batches_for(ranks)) {
    const Shape shape{ranks, micro_batches};
    const auto half = peaks("v-half", shape);
    BOOST_TEST(half == std::vector<Bytes>(half.size(), 2 * ((ranks + 2) / 2)), boost::test_tools::per_element());
    const auto third = peaks("v-min", shape);
    std::vector<Bytes> expected(third.size(), 2 * ((ranks + 4) / 3));
    if (ranks % 3 == 2) --expected[0];
    BOOST_TEST(third == expected, boost::test_tools::per_element());
  }
}

// Where F = I = W, and by span as by makespan: the rank that ends last begins first.
BOOST_DATA_TEST_CASE(bubbles, data::xrange(2, 33), ranks) {
  const Time half = ranks == 2 ? 1 : 6 * ((ranks + 1) / 2) - 7;
  const Time third = ranks % 3 == 0 ? 4 * ranks - 7 : 4 * ranks - 5;
  for (const std::int64_t micro_batches : batches_for(ranks)) {
    for (const auto& [family, bubble] : {std::pair{"v-half", half}, {"v-min", third}}) {
      const Timeline timeline = run(family, {ranks, micro_batches}, uniform(1, 1, 1));
      BOOST_TEST(idle(timeline, timeline.makespan()) == bubble);
      BOOST_TEST(idle(timeline, timeline.span()) == bubble);
    }
  }
}

// The durations of a pass decide whether a rank idles between the two ends, too: a micro-batch more takes a rank's work
// on it, or longer.
BOOST_AUTO_TEST_CASE(periods) {
  Random random(16);
  int stalls = 0;
  for (int i = 0; i < 60; ++i) {
    const int ranks = static_cast<int>(random.between(3, 12));
    const Time f = random.between(1, 30);
    const Time b = random.between(1, 30);
    const Time w = random.between(1, 30);
    const Time work = 2 * (f + b + w);
    const Time most = std::max(f, b);
    BOOST_TEST_CONTEXT(ranks << " ranks, F " << f << " I " << b << " W " << w) {
      BOOST_TEST(steady_time("v-half", ranks, uniform(f, b, w)) == std::max(work, 4 * most + w));
      BOOST_TEST(steady_time("v-min", ranks, uniform(f, b, w)) == std::max(work, 6 * most));
    }
    stalls += 6 * most > work ? 1 : 0;
  }
  BOOST_TEST(stalls > 10);
  BOOST_TEST(stalls < 60);
}

// By span, of a model whose ranks have twice a stage's work: to the four digits of the paper's measured case, and of F
// = I = W.
BOOST_AUTO_TEST_CASE(rates) {
  const Shape shape{8, 24};
  const auto rate = [&](std::string_view family, const Costs& costs) {
    return std::llround(run(family, shape, costs).bubble_rate_span() * 1e4);
  };
  const Costs measured = uniform(18'522, 18'086, 9'337, 601);
  BOOST_TEST(rate("v-half", measured) == 1610);
  BOOST_TEST(rate("v-min", measured) == 3175);
  BOOST_TEST(rate("v-half", uniform(1, 1, 1)) == 1056);
  BOOST_TEST(rate("v-min", uniform(1, 1, 1)) == 1579);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
