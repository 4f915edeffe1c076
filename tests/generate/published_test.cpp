// The figures that are published, or known from elsewhere, for the families that have no golden, or for more shapes
// than the goldens have: bubbles, peaks, makespans. No figure here comes from this project's simulator.
#include <algorithm>
#include <array>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdlib>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

using boost::unit_test::data::xrange;

// F and a whole backward; where the backward is split, both halves.
Costs costs_of(Time forward, Time input_gradient, Time weight_gradient, Time latency = 0) {
  Costs costs = uniform(forward, input_gradient, weight_gradient, latency);
  costs.stages[0].activation = costs.stages[0].weight_stash = 1;  // W frees all
  return costs;
}

struct Run {
  Program program;
  Costs costs;
  Timeline timeline;

  Run(std::string_view family, const Shape& shape, const Costs& with)
      : program(lower(generate(family, shape))), costs(with), timeline(simulate(program, costs, Record::ranks)) {}

  // Of the rank that idles most.
  [[nodiscard]] Time bubble() const { return largest(timeline.makespan()); }
  [[nodiscard]] Time bubble_by_span() const { return largest(timeline.span()); }
  // In activations of one stage.
  [[nodiscard]] std::int64_t peak(int rank) const { return rank_memory(program, costs, rank).peak; }

 private:
  [[nodiscard]] Time largest(Time cost) const {
    Time most = 0;
    for (const RankTimes& rank : timeline.ranks) most = std::max(most, cost - rank.busy);
    return most;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(generate_published)

// P-1 at F = I = W; by span none from 2P-1 micro-batches on, and 2 for each that is fewer.
BOOST_DATA_TEST_CASE(zbv, xrange(2, 33), ranks) {
  const Costs costs = costs_of(1, 1, 1);
  for (const int micro_batches : {ranks, 2 * ranks - 1, 3 * ranks}) {
    const Run run("zbv", {ranks, micro_batches}, costs);
    const int missing = std::max(0, 2 * ranks - 1 - micro_batches);
    BOOST_TEST(run.bubble_by_span() == 2 * missing);
    if (missing > 0) continue;
    BOOST_TEST(run.bubble() == ranks - 1);
    for (int rank = 0; rank < ranks; ++rank) BOOST_TEST(run.peak(rank) == 2 * ranks);
  }
}

// 5P-8, 5P-5, 5P-7 for P mod 3 = 0, 1, 2, but for small P; the peak of every rank 2/3 of 1F1B's.
BOOST_DATA_TEST_CASE(one_f_one_b_v, xrange(2, 33), ranks) {
  const int less = ranks % 3 == 0 ? 8 : ranks % 3 == 1 ? 5 : 7;
  const Time bubble = ranks == 2 ? 4 : ranks == 3 ? 8 : ranks == 9 ? 36 : 5 * ranks - less;
  for (const int micro_batches : {2 * ranks, 3 * ranks + 1, 5 * ranks}) {
    const Run run("1f1b-v", {ranks, micro_batches}, costs_of(1, 1, 1));
    BOOST_TEST(run.bubble() == bubble);
    for (int rank = 0; rank < ranks; ++rank) BOOST_TEST(run.peak(rank) == 2 * (2 * ranks / 3 + 1));
  }
}

// Where F and B differ from 1 : 2 the steady state has a period of its own: with two stages of work 2T on a rank,
// max(2T, 6F), or max(2T, 4F + B) for P = 3, 5, 6, 9, and 2T for P = 2.
BOOST_DATA_TEST_CASE(one_f_one_b_v_period, xrange(2, 33), ranks) {
  for (const auto& [forward, backward] : {std::pair{2, 2}, std::pair{3, 4}, std::pair{2, 3}, std::pair{1, 3}}) {
    const Costs costs = costs_of(forward, backward - 1, 1);
    const int few = 4 * ranks;
    const Time period = (Run("1f1b-v", {ranks, few + 20}, costs).timeline.makespan() -
                         Run("1f1b-v", {ranks, few}, costs).timeline.makespan()) /
                        20;
    const Time work = 2 * (forward + backward);
    const bool is_other = ranks == 3 || ranks == 5 || ranks == 6 || ranks == 9;
    const Time expected = ranks == 2 ? work : std::max<Time>(work, is_other ? 4 * forward + backward : 6 * forward);
    BOOST_TEST(period == expected, forward << " " << backward);
  }
}

// arXiv:2405.15362 counts by span, with equal work per rank: here at its 1.5B row, and at F = I = W.
BOOST_AUTO_TEST_CASE(one_f_one_b_v_rates) {
  const auto rate = [](const Costs& costs) { return Run("1f1b-v", {8, 24}, costs).timeline.bubble_rate_span(); };
  BOOST_TEST(std::abs(rate(costs_of(1, 1, 1)) - 0.1864) < 5e-5);
  BOOST_TEST(std::abs(rate(costs_of(18522, 18086, 9337, 601)) - 0.2763) < 5e-5);
}

// arXiv:2211.05322: the bubble of 1F1B; messages of forwards are hidden, which cost 1F1B twice for every P
// micro-batches.
BOOST_DATA_TEST_CASE(eager_1f1b, xrange(2, 33), ranks) {
  const Time p = ranks;
  for (const Time rounds : {2, 3, 5}) {
    const Time m = rounds * p;
    const Run free("eager-1f1b", {ranks, m}, costs_of(2, 3, 2));
    BOOST_TEST(free.bubble() == 7 * (p - 1));
    for (int rank = 0; rank < ranks; ++rank) BOOST_TEST(free.peak(rank) == std::min(m, 2 * (p - rank) - 1));
    const Time latency = 3;  // 1.5 F
    const Costs costs = costs_of(2, 3, 2, latency);
    BOOST_TEST(Run("eager-1f1b", {ranks, m}, costs).timeline.makespan() == (m + p - 1) * 7 + 2 * (p - 1) * latency);
    BOOST_TEST(Run("1f1b", {ranks, m}, costs).timeline.makespan() ==
               (m + p - 1) * 7 + (2 * (p - 1) * rounds + 2 * (p - 2)) * latency);
  }
}

struct Pair {
  Time forward, backward;
};
constexpr std::array pairs{Pair{1, 1}, Pair{1, 2}, Pair{3, 2}, Pair{2, 7}};

// arXiv:2107.06925. Units one after the other let B - F of every unit show; units half as far apart do not.
BOOST_DATA_TEST_CASE(chimera, xrange(1, 17), half) {
  const int ranks = 2 * half;
  for (const Time units : {1, 2, 5}) {
    for (const Pair each : pairs) {
      const Costs costs = costs_of(each.forward, each.backward - 1, 1);
      const Time longer = std::max(each.forward, each.backward);
      const Time difference = std::abs(each.forward - each.backward);
      const Run run("chimera", {ranks, units * ranks}, costs);
      const Run shifted("chimera-shifted", {ranks, units * ranks}, costs);
      BOOST_TEST(run.bubble() == (ranks - 2) * (longer + (units - 1) * difference));
      BOOST_TEST(shifted.bubble() == (ranks - 2) * longer);
      for (int rank = 0; rank < ranks; ++rank) {
        const int peak = half + 1 + std::min(rank, ranks - 1 - rank);
        BOOST_TEST(run.peak(rank) == std::min(ranks, peak));
        BOOST_TEST(shifted.peak(rank) == (units == 1 ? std::min(ranks, peak) : ranks));
      }
    }
  }
}

// With 2f chains, at F = B, a rate of (P-2f)/(2fM+P-2f), and peaks from P-P/2f+1 to P; 2f times the parameters.
BOOST_AUTO_TEST_CASE(chimera_replicas) {
  for (const int replicas : {1, 2, 3, 4, 8}) {
    for (const int stretch : {1, 2, 3}) {
      const int ranks = 2 * replicas * stretch;
      for (const int units : {1, 2, 4}) {
        const Shape shape{.ranks = ranks, .micro_batches = units * ranks, .replicas = replicas};
        for (const char* name : {"chimera", "chimera-shifted"}) {
          const Run run(name, shape, costs_of(1, 0, 1));
          BOOST_TEST_CONTEXT(name << " " << ranks << "x" << shape.micro_batches << ", f = " << replicas) {
            const double rate = static_cast<double>(ranks - 2 * replicas) /
                                static_cast<double>(2 * replicas * shape.micro_batches + ranks - 2 * replicas);
            BOOST_TEST(run.timeline.bubble_rate_makespan() == rate, boost::test_tools::tolerance(1e-12));
            BOOST_TEST(run.program.schedule.placement.stages_on(0).size() == static_cast<std::size_t>(2 * replicas));
            if (std::string_view(name) != "chimera") continue;
            std::int64_t least = ranks;
            std::int64_t most = 0;
            for (int rank = 0; rank < ranks; ++rank) {
              least = std::min(least, run.peak(rank));
              most = std::max(most, run.peak(rank));
            }
            BOOST_TEST(least == ranks - ranks / (2 * replicas) + 1);
            BOOST_TEST(most == ranks);
          }
        }
      }
    }
  }
}

// One wave is Chimera on twice the ranks, folded: at B = 2F and M = P a rate of (2P-2)/(5P-2). More waves idle as long,
// and work longer. So the rate stays below that of a greedy order (oldest micro-batch first: .368, .238, .135 at P = 8
// and W = 1, 2, 4) and of the paper's formula (.452, .255, .136).
BOOST_AUTO_TEST_CASE(hanayo_rates) {
  for (int ranks = 2; ranks <= 32; ++ranks) {
    const Run run("hanayo", {ranks, ranks}, costs_of(1, 1, 1));
    const double rate = static_cast<double>(2 * ranks - 2) / static_cast<double>(5 * ranks - 2);
    BOOST_TEST(run.timeline.bubble_rate_makespan() == rate, boost::test_tools::tolerance(1e-12));
  }
  struct Row {
    int waves;
    double greedy, paper;
  };
  for (const Row row : {Row{1, 0.3685, 0.452}, Row{2, 0.238, 0.255}, Row{4, 0.135, 0.136}}) {
    const Run run("hanayo", {.ranks = 8, .micro_batches = 8, .waves = row.waves}, costs_of(1, 1, 1));
    BOOST_TEST(run.timeline.bubble_rate_makespan() < row.greedy);
    BOOST_TEST(run.timeline.bubble_rate_makespan() < row.paper);
  }
}

// However many micro-batches there are, a rank holds the activations of P of them, and idles as long as for P.
BOOST_DATA_TEST_CASE(hanayo_goes_on, xrange(2, 17), ranks) {
  for (const int waves : {1, 2, 3}) {
    for (const Time rounds : {1, 2, 4}) {
      for (const Pair each : pairs) {
        const Costs costs = costs_of(each.forward, each.backward - 1, 1);
        const Run run("hanayo", {.ranks = ranks, .micro_batches = rounds * ranks, .waves = waves}, costs);
        BOOST_TEST(run.bubble() == 2 * (ranks - 1) * std::max(each.forward, each.backward));
        for (int rank = 0; rank < ranks; ++rank) {
          BOOST_TEST(run.peak(rank) <= 2 * waves * ranks);
          if (rounds > 1) BOOST_TEST(run.peak(rank) == 2 * waves * ranks);
        }
      }
    }
  }
}

// Makespans that https://github.com/Victarry/PP-Schedule-Visualization computes, with its own order and timer.
struct Overlap {
  Shape shape;
  Time forward, backward, overlapped, makespan, of_interleaved;
};
std::ostream& operator<<(std::ostream& out, const Overlap& row) { return out << row.shape.ranks << " ranks"; }
constexpr std::array overlaps{Overlap{{2, 4, 2}, 1, 2, 2, 22, 27},         Overlap{{4, 8, 2}, 1, 2, 3, 57, 57},
                              Overlap{{4, 8, 2}, 1, 2, 2, 46, 57},         Overlap{{4, 12, 2}, 10, 20, 25, 715, 810},
                              Overlap{{4, 12, 3}, 10, 20, 24, 1008, 1170}, Overlap{{8, 16, 2}, 10, 20, 26, 1078, 1170},
                              Overlap{{8, 32, 4}, 3, 7, 8, 1144, 1350}};

BOOST_DATA_TEST_CASE(interleaved_overlap, boost::unit_test::data::make(overlaps), row) {
  const Costs costs = uniform(row.forward, row.backward - 1, 1, 0, row.overlapped);
  BOOST_TEST(Run("interleaved-overlap", row.shape, costs).timeline.makespan() == row.makespan);
  BOOST_TEST(Run("interleaved", row.shape, costs).timeline.makespan() == row.of_interleaved);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
