// Models whose head has the token embedding's weight.
#include <ATen/ATen.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/exec/training.h"
#include "tests/scratch.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

TrainOptions small(const Program& program, const std::string& model) {
  TrainOptions options = tiny(program, model);
  options.steps = 2;
  return options;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_tied)

BOOST_DATA_TEST_CASE(a_tied_head_trains_like_the_model_by_itself, data::make(family_names()) * data::make({2, 4}), name,
                     ranks) {
  const Program program = program_of(name, ranks);
  TrainOptions options = small(program, "gpt");
  options.shape.tied = true;
  options.clip = 0.01;
  const CheckReport report = checked(program, options);
  BOOST_TEST(report.failure == "");
  if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
}

// Where one stage has all, one parameter is used twice; else each chain has two copies of it.
BOOST_AUTO_TEST_CASE(a_tied_head_does_not_depend_on_the_split) {
  const auto losses_on = [](const std::string& name, int ranks) {
    const Program program = lower(generate(name, {ranks, 8}));
    TrainOptions options = small(program, "gpt");
    options.shape.layers = split_evenly(4, static_cast<int>(options.shape.layers.size()));
    options.shape.tied = true;
    options.optimizer = OptimizerKind::adamw;
    options.learning_rate = 0.01;
    options.clip = 0.1;
    options.steps = 4;
    return train(program, options).losses;
  };
  const std::vector<double> expected = losses_on("1f1b", 1);
  BOOST_TEST(expected[3] < expected[0]);
  for (const auto& [name, ranks] : std::vector<std::pair<std::string, int>>{
           {"1f1b", 2}, {"1f1b", 4}, {"zb1p", 4}, {"dualpipe", 2}, {"dualpipe", 4}, {"dualpipev", 2}}) {
    const std::vector<double> losses = losses_on(name, ranks);
    if (name != "dualpipe") BOOST_TEST(losses == expected, boost::test_tools::per_element());
    for (std::size_t step = 0; step < 4; ++step) {  // the gradients of two chains are added in another order
      BOOST_TEST(losses[step] == expected[step], boost::test_tools::tolerance(1e-12));
    }
  }
}

BOOST_AUTO_TEST_CASE(copies_of_a_tied_parameter_stay_bitwise_equal) {
  const Program program = program_of("dualpipe", 4);
  TrainOptions options = small(program, "gpt");
  options.shape.tied = true;
  options.clip = 0.01;
  options.steps = 3;
  std::vector<at::Tensor> first;
  TrainObserver observer;
  observer.on_gradients = [&](int, std::span<Stage* const> stages) {
    for (const std::size_t stage : {1U, 2U, 5U, 6U}) BOOST_TEST(stages[stage]->tied_parameters().empty());
    const at::Tensor tied = stages[0]->tied_parameters().at(0);
    BOOST_TEST(tied.grad().abs().max().item<double>() > 0);
    for (const std::size_t stage : {3U, 4U, 7U}) {
      const at::Tensor copy = stages[stage]->tied_parameters().at(0);
      BOOST_TEST(!copy.is_same(tied));
      BOOST_TEST(copy.equal(tied));
      BOOST_TEST(copy.grad().equal(tied.grad()));
    }
    first.push_back(tied.detach().clone());
  };
  (void)train(program, options, observer);
  BOOST_TEST(!first[0].equal(first[2]));
}

// Steps 0 and 1 on one schedule, 2 and 3 on another, against all on the first.
BOOST_AUTO_TEST_CASE(a_tied_training_goes_on_on_other_ranks) {
  const auto options_on = [](const Program& program) {
    TrainOptions options = small(program, "gpt");
    options.shape.layers = split_evenly(4, static_cast<int>(options.shape.layers.size()));
    options.shape.tied = true;
    options.optimizer = OptimizerKind::adamw;
    options.clip = 0.1;
    return options;
  };
  const Program first = lower(generate("1f1b", {2, 8}));
  TrainOptions whole = options_on(first);
  whole.steps = 4;
  const std::vector<double> expected = train(first, whole).losses;

  const Scratch scratch;
  const std::string file = scratch / "saved";
  TrainOptions begun = options_on(first);
  begun.save = file;
  (void)train(first, begun);
  const Program second = lower(generate("zb1p", {4, 8}));
  TrainOptions resumed = options_on(second);
  resumed.resume = file;
  const std::vector<double> losses = train(second, resumed).losses;
  BOOST_TEST(losses[0] == expected[2]);
  BOOST_TEST(losses[1] == expected[3]);

  resumed.shape.tied = false;
  const std::string what = refusal([&] { (void)train(second, resumed); });
  BOOST_TEST(what.find("lacks tensor 'head.logits.weight'") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
