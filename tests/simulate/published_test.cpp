// The bubble rates that the zero-bubble paper's scheduler printed (arXiv 2401.10241, Table 5) for the durations that
// the authors measured (Table 9).
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(simulate_published)

// model,p,m,F,I,W,c,v,a,h,rate_1f1b,rate_1f1b_i,rate_zb_h1,rate_zb_h2,…. rate_1f1b_i is no target: the authors' routine
// does not await most of the messages between chunks.
BOOST_AUTO_TEST_CASE(bubble_rates_by_span) {
  const auto rows = read_table("published_zero_bubble.csv");
  BOOST_TEST_REQUIRE(rows.size() == 8U);
  for (const auto& row : rows) {
    const auto time = [&](std::size_t column) {
      return static_cast<Time>(std::llround(std::stod(row.at(column)) * 1e6));
    };
    const Costs costs = uniform(time(3), time(4), time(5), time(6));
    const Shape shape{std::stoi(row[1]), std::stoll(row[2])};
    const std::pair<const char*, std::size_t> rates[] = {{"1f1b", 10}, {"zb1p", 12}, {"zb-h2", 13}};
    for (const auto& [name, column] : rates) {
      BOOST_TEST_CONTEXT(name << ", " << row[0] << ", " << shape.ranks << " ranks, " << shape.micro_batches) {
        const Timeline timeline = simulate(lower(generate(name, shape)), costs, Record::ranks);
        // Printed with four digits.
        BOOST_TEST(std::abs(timeline.bubble_rate_span() - std::stod(row.at(column))) <= 0.0001);
      }
    }
    // Of the memory of a layer (section 4) with sequences of 1024, one in a micro-batch.
    const auto number = [&](std::size_t column) { return std::stoll(row.at(column)); };
    Costs with_memory = costs;
    with_memory.stages[0].activation = 34 * number(9) + 5 * number(8) * 1024;
    with_memory.stages[0].weight_stash = 32 * number(9);
    for (const std::int64_t times : {1, 2}) {
      BOOST_TEST_CONTEXT("ZB-" << times << "p, " << row[0] << ", " << shape.ranks << " ranks, "
                               << shape.micro_batches) {
        const Timeline timeline = evaluate({.family = "zb-auto",
                                            .shape = shape,
                                            .costs = with_memory,
                                            .memory_limit = MemoryLimit::micro_batches(times * shape.ranks)})
                                      .timeline;
        const double published = std::stod(row.at(static_cast<std::size_t>(13 + times)));
        BOOST_TEST(std::abs(timeline.bubble_rate_span() - published) <= 0.0001);
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
