#include "dualpipe/sim/costs/costs.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

// What check() says to good costs after a change for the worse, for two stages on two ranks.
std::string check_after(const std::function<void(Costs&)>& change) {
  Costs costs = test::uniform(10, 10, 10);
  change(costs);
  try {
    check(costs, straight(2, 1));
  } catch (const InputError& error) {
    return error.what();
  }
  return {};
}

BOOST_AUTO_TEST_SUITE(costs_costs)

BOOST_AUTO_TEST_CASE(a_backward_starts_with_what_it_recomputes) {
  StageCosts costs;
  costs.forward = 10;
  costs.backward = 20;
  costs.input_gradient = 13;
  costs.weight_gradient = 8;
  costs.recompute = 100;
  BOOST_TEST(costs.duration(Kind::forward) == 10);
  BOOST_TEST(costs.duration(Kind::backward) == 120);
  BOOST_TEST(costs.duration(Kind::input_gradient) == 113);
  BOOST_TEST(costs.duration(Kind::weight_gradient) == 8);
}

// What is not held until then is made anew, and held while the op runs.
BOOST_AUTO_TEST_CASE(recomputation_holds_less_between_and_the_same_within) {
  StageCosts costs;
  costs.recompute = 100;
  costs.activation = 50;
  costs.backward_workspace = 7;
  BOOST_TEST(costs.held_activation() == 50);
  BOOST_TEST(costs.workspace(Kind::backward) == 7);
  BOOST_TEST(!knows_both_recomputes({&costs, 1}));
  costs.recompute_activation = 20;
  BOOST_TEST(costs.held_activation() == 20);
  BOOST_TEST(costs.workspace(Kind::backward) == 37);
  BOOST_TEST(costs.workspace(Kind::input_gradient) == 30);
  BOOST_TEST(costs.workspace(Kind::weight_gradient) == 0);
  BOOST_TEST(costs.workspace(Kind::forward) == 0);
  costs.overlapped = 130;
  BOOST_TEST(knows_both_recomputes({&costs, 1}));
  const StageCosts without = without_recompute(costs);
  BOOST_TEST(without.duration(Kind::backward) == 0);
  BOOST_TEST(without.held_activation() == 50);
  BOOST_TEST(without.workspace(Kind::backward) == 7);
  BOOST_TEST(!without.overlapped);
  BOOST_TEST(!knows_both_recomputes({&without, 1}));
}

BOOST_AUTO_TEST_CASE(check_names_what_does_not_fit) {
  const auto refused = check_after;
  BOOST_TEST(refused([](Costs&) {}) == "");
  BOOST_TEST(refused([](Costs& c) { c.stages.resize(2, c.stages[0]); }) == "");
  BOOST_TEST(refused([](Costs& c) { c.speed = {1, 0.5}; }) == "");
  BOOST_TEST(refused([](Costs& c) { c.stages.clear(); }) ==
             "costs are given for no stage; give one entry for all, or one for each");
  BOOST_TEST(refused([](Costs& c) { c.stages.resize(3); }) ==
             "costs are given for 3 stages, but the schedule has 2; give one entry for all, or 2");
  BOOST_TEST(refused([](Costs& c) { c.stages[0].forward = -1; }) ==
             "stage 0: forward_ns is -1 ns; it must be from 0 to 86400000000000 ns, a day");
  BOOST_TEST(refused([](Costs& c) {
               c.stages.resize(2);
               c.stages[1].overlapped = time_max + 1;
             }) == "stage 1: overlapped_ns is 86400000000001 ns; it must be from 0 to 86400000000000 ns, a day");
  BOOST_TEST(refused([](Costs& c) { c.stages[0].recompute_activation = 1; }) ==
             "stage 0: recompute_activation_bytes is what is held where the forward runs again, but recompute_ns is 0; "
             "give that, too");
  BOOST_TEST(refused([](Costs& c) {
               c.stages[0].recompute = 1;
               c.stages[0].activation = 9;
               c.stages[0].recompute_activation = 10;
             }) == "stage 0: recompute_activation_bytes is 10, more than activation_bytes, which it is a part of: 9");
  BOOST_TEST(refused([](Costs& c) { c.stages[0].activation = -1; }) ==
             "stage 0: activation_bytes is -1; it must be from 0 to 2^60 bytes");
  BOOST_TEST(refused([](Costs& c) {
               c.stages[0].optimizer = (Bytes{1} << 60U) + 1;
             }).starts_with("stage 0: optimizer_bytes is 1152921504606846977"));
  BOOST_TEST(refused([](Costs& c) { c.stages[0].recompute = -1; }) ==
             "stage 0: recompute_ns is -1 ns; it must be from 0 to 86400000000000 ns, a day");
  BOOST_TEST(refused([](Costs& c) { c.stages[0].backward_workspace = -1; }) ==
             "stage 0: backward_workspace_bytes is -1; it must be from 0 to 2^60 bytes");
  BOOST_TEST(refused([](Costs& c) { c.stages[0].overlapped_workspace = -(Bytes{1} << 60U) - 1; }) ==
             "stage 0: overlapped_workspace_bytes is -1152921504606846977; it must be from -2^60 to 2^60 bytes");
  BOOST_TEST(refused([](Costs& c) { c.latency = -7; }).starts_with("the latency is -7 ns"));
  BOOST_TEST(refused([](Costs& c) { c.launch = std::numeric_limits<Time>::max(); }).starts_with("the launch overhead"));
  BOOST_TEST(refused([](Costs& c) { c.speed = {1}; }) ==
             "speeds are given for 1 ranks, but the schedule has 2; give one for each, or none");
  BOOST_TEST(refused([](Costs& c) { c.speed = {1, 0}; }) == "rank 1: a speed must be from 1e-6 to 1e6; 0 is not");
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {infinity, -infinity, std::nan(""), -1.0}) {
    BOOST_TEST(!refused([&](Costs& c) { c.speed = {1, bad}; }).empty());
    BOOST_TEST(!refused([&](Costs& c) { c.jitter = bad; }).empty());
    BOOST_TEST(!refused([&](Costs& c) { c.bandwidth = bad; }).empty());
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
