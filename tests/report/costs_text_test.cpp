// What stands above a report: all that it was computed from, and nothing that was not there.
#include "dualpipe/sim/report/costs_text.h"

#include <boost/test/unit_test.hpp>

#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

BOOST_AUTO_TEST_SUITE(report_costs_text)

BOOST_AUTO_TEST_CASE(of_a_stage) {
  BOOST_TEST(costs_text(uniform(ms, ms, ms), false) ==
             "per micro-batch, of a stage: F 1 ms, B 2 ms (I 1 ms, W 1 ms)\n"
             "communication: latency, messages take no time\n"
             "memory: no bytes given\n");
}

BOOST_AUTO_TEST_CASE(all_that_there_may_be) {
  Costs costs = uniform(ms, ms, ms);
  costs.stages[0].recompute = 800'000;
  costs.stages[0].activation = 64 << 20;
  costs.stages[0].recompute_activation = 16 << 20;
  costs.stages[0].message = 16 << 20;
  costs.stages[0].forward_workspace = 1 << 20;
  costs.stages.push_back(costs.stages[0]);
  costs.stages[1].forward = 2'500'000;
  costs.stages[1].optimizer = Bytes{3} << 30;
  costs.model = CommunicationModel::links;
  costs.latency = 20'000;
  costs.bandwidth = 5e10;
  costs.release_early = true;
  costs.speed = {1, 0.5};
  costs.launch = 2000;
  costs.jitter = 0.05;
  costs.seed = 7;
  BOOST_TEST(costs_text(costs, true) ==
             "per micro-batch, of each of its 2 stages: F 1 to 2.5 ms,\n"
             "  B 2 ms (I 1 ms, W 1 ms), recomputation 800 µs more, F&B = F + B (not measured)\n"
             "communication: links, 20 µs a message, 16 MiB at 50 GB/s,\n"
             "  pairs release F and B when each is ready\n"
             "memory: M_B 64 MiB, recomputed M_B 16 MiB, workspace of F 1 MiB,\n"
             "  optimizer 0 B to 3 GiB\n"
             "ranks: speed 0.5x to 1x, 2 µs between two ops, jitter 5.00% (seed 7)\n");
  for (StageCosts& stage : costs.stages) stage.overlapped = 2 * ms;
  BOOST_TEST(costs_text(costs, true).find("F&B 2 ms\n") != std::string::npos);
  BOOST_TEST(costs_text(costs, true, ByteUnits::decimal).find("M_B 67.11 MB") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
