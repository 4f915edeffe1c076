// Every cost can be set by the name of its option, to what the option would make of it, or to a multiple.
#include "dualpipe/sim/costs/set_cost.h"

#include <boost/test/unit_test.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "dualpipe/sim/options/cost_options.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

// What has no default of 0, so that a multiple of it differs.
GivenCosts known() {
  Costs costs = uniform(10'000'000, 9'000'000, 6'000'000, 40'000, 20'000'000);
  StageCosts& stage = costs.stages[0];
  stage.recompute = 4'000'000;
  stage.recompute_activation = 100;
  stage.activation = 1000;
  stage.weight_stash = 800;
  stage.message = 600;
  stage.forward_workspace = stage.backward_workspace = 400;
  stage.input_gradient_workspace = stage.weight_gradient_workspace = 400;
  stage.parameters = 2000;
  stage.gradients = 4000;
  stage.optimizer = 12000;
  costs.bandwidth = 5e10;
  costs.launch = 2000;
  costs.jitter = 0.1;
  return costs;
}

GivenCosts set(std::string_view name, std::string_view value) {
  GivenCosts costs = known();
  set_cost(costs, name, value);
  return costs;
}

const StageCosts& stage_of(const GivenCosts& costs) { return entries_of(costs)[0]; }

BOOST_AUTO_TEST_SUITE(costs_set_cost)

BOOST_AUTO_TEST_CASE(once_leaves_all_as_it_is_and_twice_does_not) {
  for (const std::string& name : cost_names()) {
    BOOST_TEST_CONTEXT(name) {
      if (name == "comm" || name == "seed") {
        BOOST_TEST(refusal([&] { (void)set(name, "2x"); }).starts_with(name + ": "));
        continue;
      }
      BOOST_TEST((set(name, "1x") == known()));
      BOOST_TEST((set(name, "2x") != known()));
      BOOST_TEST(is_machine_cost(name) == (entries_of(set(name, "2x"))[0] == stage_of(known())));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_value_is_that_of_the_option) {
  CostOptions options;
  options.forward = {"3ms"};
  options.backward = {"5ms"};
  options.weight = {"2ms"};
  options.activation = {"64MiB"};
  options.latency = "20us";
  options.bandwidth = "400Gbps";
  options.communication = "links";
  options.jitter = "0.05";
  options.seed = "7";
  GivenCosts costs = CostOptions().costs();
  for (const auto& [name, value] : {std::pair("forward", "3ms"),
                                    {"backward", "5ms"},
                                    {"weight", "2ms"},
                                    {"activation-bytes", "64MiB"},
                                    {"latency", "20us"},
                                    {"bandwidth", "400Gbps"},
                                    {"comm", "links"},
                                    {"jitter", "0.05"},
                                    {"seed", "7"}}) {
    set_cost(costs, name, value);
  }
  BOOST_TEST((costs == options.costs()));
}

BOOST_AUTO_TEST_CASE(backward_stays_the_sum_of_its_halves) {
  const auto is_sum = [](const StageCosts& stage) {
    return stage.backward == stage.input_gradient + stage.weight_gradient;
  };
  BOOST_TEST(is_sum(stage_of(set("backward", "1.1x"))));
  BOOST_TEST(is_sum(stage_of(set("weight", "0.5x"))));
  BOOST_TEST(stage_of(set("weight", "0.5x")).input_gradient == 9'000'000);
  BOOST_TEST(stage_of(set("weight", "5ms")).backward == 15'000'000);
  BOOST_TEST(stage_of(set("weight", "5ms")).input_gradient == 10'000'000);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_is_refused) {
  const auto says = [](std::string_view name, std::string_view value) {
    return refusal([&] { (void)set(name, value); });
  };
  BOOST_TEST(says("latencie", "1us").find("did you mean latency?") != std::string::npos);
  BOOST_TEST(says("latency", "soon").starts_with("latency: 'soon' cannot be read"));
  BOOST_TEST(says("latency", "-1x").starts_with("latency: '-1x' is negative"));
  BOOST_TEST(says("forward", "1e30x").find("too large") != std::string::npos);
  BOOST_TEST(says("jitter", "1").starts_with("jitter: the jitter must be"));
  BOOST_TEST(says("weight", "16ms").find("part of the full backward B") != std::string::npos);
  BOOST_TEST(says("comm", "link").find("latency, links, stream") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
