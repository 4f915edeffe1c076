// The simulator against the other one (tests/oracle.h): every figure, the time of every op and message, and the memory.
#include "tests/oracle.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "dualpipe/sim/schedule/lower.h"
#include "tests/support.h"
#include "tests/verdict.h"

namespace dualpipe::test {
namespace {

constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                         CommunicationModel::stream};

void check(const Program& program, Random& random, int draws) {
  for (const CommunicationModel model : models) {
    for (int i = 0; i < draws; ++i) {
      const Costs costs = random_run_costs(random, program.schedule.placement, model);
      BOOST_TEST_CONTEXT(model << ", draw " << i) {
        const std::string difference = difference_from_oracle(program, costs);
        BOOST_TEST(difference == "");
      }
    }
  }
}

// Where a case's random numbers begin: no two shapes share them.
std::uint64_t seed_of(const Shape& shape) {
  return static_cast<std::uint64_t>((shape.ranks * 1000 + shape.micro_batches) * 10 + shape.chunks);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_oracle)

BOOST_AUTO_TEST_CASE(small_shapes_of_every_family) {
  for (const Case& each : small_cases(5, 10)) {
    BOOST_TEST_CONTEXT(each) {
      Random random(seed_of(each.shape));
      check(lower(generate(each.family, each.shape)), random, 2);
    }
  }
}

BOOST_DATA_TEST_CASE(goldens_of_others, boost::unit_test::data::make(goldens()), golden) {
  Random random(golden.path.size());
  check(read_program(golden), random, 2);
}

// Worked out by hand, so that the oracle itself is held to something: 1F1B, F = 2, B = 3, a message takes 1.
//
//   latency, links   rank 0:  F0 F0 F1 F1 .  .  .  .  .  B0 B0 B0 .  .  B1 B1 B1
//                    rank 1:  .  .  .  F0 F0 B0 B0 B0 F1 F1 B1 B1 B1
//
//   stream           rank 1 receives F1 together with sending B0, at 8, and so all behind it is 1 later
BOOST_AUTO_TEST_CASE(by_hand) {
  const Program program = program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 [0SEND_F1 0RECV_B0] 0B0 0RECV_B1 0B1",
                                                      "1RECV_F0 1F0 1B0 [1SEND_B0 1RECV_F1] 1F1 1B1 1SEND_B1"});
  const std::vector<Span> at_once{{0, 2}, {2, 4}, {9, 12}, {14, 17}, {3, 5}, {5, 8}, {8, 10}, {10, 13}};
  const std::vector<Span> in_order{{0, 2}, {2, 4}, {9, 12}, {15, 18}, {3, 5}, {5, 8}, {9, 11}, {11, 14}};
  Costs costs = uniform(2, 2, 1, 1);
  for (const CommunicationModel model : models) {
    costs.model = model;
    const auto& expected = model == CommunicationModel::stream ? in_order : at_once;
    BOOST_TEST(oracle::simulate(program, costs)->ops == expected, boost::test_tools::per_element());
    BOOST_TEST(difference_from_oracle(program, costs) == "");
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
