#include "dualpipe/exec/train/checkpoint.h"

#include <ATen/ATen.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>

#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "tests/exec/legs.h"
#include "tests/exec/training.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {

using detail::train::plain_sum;
using detail::train::SafeTensors;
using detail::train::sum_in_any_order;
using detail::train::TensorView;

namespace {

namespace data = boost::unit_test::data;

bool adds_in_order(std::string_view name) { return family(name).chains({}) == 1 && name != "looped-bfs"; }

// The largest difference of two tensors, relative to the largest element.
double distance(const TensorView& a, const TensorView& b) {
  BOOST_TEST((a.shape == b.shape));
  const auto tensor = [](const TensorView& view) {
    std::vector<double> values(view.data.size() / sizeof(double));
    std::memcpy(values.data(), view.data.data(), view.data.size());
    return at::tensor(values);
  };
  const at::Tensor x = tensor(a);
  const at::Tensor y = tensor(b);
  return ((x - y).abs().max() / x.abs().max()).item<double>();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_checkpoint)

// --- going on

// The whole file is the same: parameters, optimizer, metadata.
BOOST_DATA_TEST_CASE(a_resumed_training_goes_on_bit_for_bit,
                     thinned(5, data::make({"mlp", "gpt", "moe"}) *
                                    data::make({Precision::float32, Precision::float64, Precision::bfloat16}) *
                                    data::make({"sgd", "adamw"})),
                     model, precision, optimizer) {
  const Scratch scratch;
  TrainOptions options = options_for(program_for("1f1b", 2), model);
  options.shape.precision = precision;
  options.optimizer = optimizer == std::string("sgd") ? OptimizerKind::sgd : OptimizerKind::adamw;
  const auto whole = train_in_legs({{"1f1b", 2, 6}}, scratch / "whole", options);
  const auto legs = train_in_legs({{"1f1b", 2, 2}, {"dualpipev", 4, 1}, {"interleaved", 2, 1}, {"zb1p", 3, 2}},
                                  scratch / "legs", options);
  BOOST_TEST(legs == whole, boost::test_tools::per_element());
  BOOST_TEST((bytes_of(scratch / "whole") == bytes_of(scratch / "legs")));
}

BOOST_AUTO_TEST_CASE(any_schedule_that_adds_in_order_goes_on_bit_for_bit) {
  const Scratch scratch;
  const TrainOptions options = options_for(program_for("1f1b", 2));
  const auto whole = train_in_legs({{"1f1b", 1, 3}}, scratch / "whole", options);
  for (const Family& each : catalog()) {
    BOOST_TEST_CONTEXT(each.name) {
      const auto legs = train_in_legs({{"1f1b", 3, 1}, {each.name, 2, 2}}, scratch / "legs", options);
      BOOST_TEST(legs[2] == whole[2], boost::test_tools::tolerance(1e-12));
      if (!adds_in_order(each.name)) continue;
      BOOST_TEST(legs == whole, boost::test_tools::per_element());
      BOOST_TEST((bytes_of(scratch / "whole") == bytes_of(scratch / "legs")));
    }
  }
}

// DualPipe adds the gradients of each chain by itself, on any number of ranks.
BOOST_AUTO_TEST_CASE(dualpipe_goes_on_bit_for_bit_on_other_ranks) {
  const Scratch scratch;
  const TrainOptions options = options_for(program_for("dualpipe", 2), "gpt");
  (void)train_in_legs({{"dualpipe", 2, 4}}, scratch / "whole", options);
  (void)train_in_legs({{"dualpipe", 4, 2}, {"dualpipe", 2, 2}}, scratch / "legs", options);
  BOOST_TEST((bytes_of(scratch / "whole") == bytes_of(scratch / "legs")));
}

// Where one stage has the embedding and the head there is one weight, which is used twice; else there are two.
BOOST_DATA_TEST_CASE(a_tied_training_goes_on_bit_for_bit_on_one_stage,
                     data::make({"gpt", "moe"}) *
                         data::make({Precision::float32, Precision::float64, Precision::bfloat16}),
                     model, precision) {
  const Scratch scratch;
  TrainOptions options = options_for(program_for("1f1b", 2), model);
  options.shape.precision = precision;
  options.shape.tied = true;
  const auto whole = train_in_legs({{"1f1b", 2, 6}}, scratch / "whole", options);
  const auto legs = train_in_legs({{"1f1b", 1, 2}, {"zb1p", 3, 1}, {"1f1b", 1, 1}, {"dualpipev", 2, 1}, {"1f1b", 1, 1}},
                                  scratch / "legs", options);
  BOOST_TEST(legs == whole, boost::test_tools::per_element());
  BOOST_TEST((bytes_of(scratch / "whole") == bytes_of(scratch / "legs")));
}

BOOST_AUTO_TEST_CASE(another_order_of_additions_changes_the_steps_within_rounding) {
  const Scratch scratch;
  const TrainOptions options = options_for(program_for("1f1b", 2), "gpt");
  (void)train_in_legs({{"1f1b", 2, 4}}, scratch / "whole", options);
  for (const auto* const schedule : {"dualpipe", "looped-bfs"}) {
    (void)train_in_legs({{"1f1b", 2, 2}, {schedule, 2, 2}}, scratch / "legs", options);
    const std::string whole_bytes = bytes_of(scratch / "whole");
    const std::string legs_bytes = bytes_of(scratch / "legs");
    const SafeTensors whole = read(whole_bytes);
    const SafeTensors legs = read(legs_bytes);
    BOOST_TEST((whole.metadata == legs.metadata));
    BOOST_TEST(whole.tensors.size() == legs.tensors.size());
    for (const auto& [name, tensor] : whole.tensors) {
      BOOST_TEST(distance(tensor, legs.tensors.at(name)) < 1e-9, schedule << ": " << name);
    }
  }
}

BOOST_AUTO_TEST_CASE(all_steps_count_and_go_on_counting) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  (void)train_in_legs({{"1f1b", 2, 5}}, scratch / "whole", options);
  options.save = scratch / "a";
  options.warmup = 1;
  options.steps = 1;
  (void)train(program, options);
  options.resume = options.save;
  options.steps = 2;
  std::vector<int> steps;
  std::vector<bool> measured;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) {
    steps.push_back(step.step);
    measured.push_back(step.measured);
  };
  const TrainResult result = train(program, options, observer);
  BOOST_TEST(steps == (std::vector{2, 3, 4}), boost::test_tools::per_element());
  BOOST_TEST(measured == (std::vector{false, true, true}), boost::test_tools::per_element());
  BOOST_TEST(result.first_step == 2);
  BOOST_TEST(result.durations.size() == 2U);
  BOOST_TEST((bytes_of(scratch / "a") == bytes_of(scratch / "whole")));
}

BOOST_AUTO_TEST_CASE(saves_every_so_many_steps_of_the_training) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  options.save = scratch / "a";
  options.save_every = 3;
  const auto saved_before_each_step = [&] {
    std::vector<std::string> saved;
    TrainObserver observer;
    observer.on_step = [&](const StepReport&) {
      const std::string bytes = bytes_of(options.save);
      saved.push_back(bytes.empty() ? "-" : read(bytes).metadata.at("steps"));
    };
    (void)train(program, options, observer);
    const std::string bytes = bytes_of(options.save);
    saved.push_back(read(bytes).metadata.at("steps"));
    return saved;
  };
  options.steps = 4;
  BOOST_TEST(saved_before_each_step() == (std::vector<std::string>{"-", "-", "-", "3", "4"}),
             boost::test_tools::per_element());
  options.resume = options.save;
  BOOST_TEST(saved_before_each_step() == (std::vector<std::string>{"4", "4", "6", "6", "8"}),
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_resumed_training_can_be_checked) {
  const Scratch scratch;
  const TrainOptions common = options_for(program_for("1f1b", 2), "gpt");
  (void)train_in_legs({{"1f1b", 2, 2}}, scratch / "a", common);
  for (const auto* const schedule : {"zb1p", "dualpipe"}) {
    const Program program = program_for(schedule, 2);
    TrainOptions options = common;
    options.resume = scratch / "a";
    options.steps = 3;
    const auto world = one_process();
    Check check(*world, program.schedule, options);
    TrainObserver observer;
    observer.on_gradients = [&](int step, std::span<Stage* const> stages) { check.on_gradients(step, stages); };
    observer.on_step = [&](const StepReport& step) { check.on_step(step); };
    (void)train(program, options, observer);
    BOOST_TEST(check.report().failure == "");
    BOOST_TEST(check.report().losses_bitwise_equal);
    BOOST_TEST(check.report().gradients.bitwise_equal);
  }
}

// Of the step that would come next, on its samples.
BOOST_AUTO_TEST_CASE(what_was_saved_can_be_evaluated) {
  const Scratch scratch;
  TrainOptions options = options_for(program_for("1f1b", 2), "gpt");
  const auto losses = train_in_legs({{"1f1b", 2, 3}}, scratch / "longer", options);
  (void)train_in_legs({{"1f1b", 2, 2}}, scratch / "a", options);
  const Program forwards = lower(forwards_of(program_for("dualpipe", 2).schedule));
  options.shape.layers = options_for(forwards).shape.layers;
  options.forward_only = true;
  options.resume = scratch / "a";
  BOOST_TEST(train(forwards, options).losses[0] == losses[2]);
  options.shape.seed = 6;  // other samples; the parameters are those in the file
  options.shape.batch = 3;
  options.optimizer = OptimizerKind::sgd;
  BOOST_TEST(train(forwards, options).losses[0] != losses[2]);
}

BOOST_DATA_TEST_CASE(names_are_the_models_however_it_is_split, data::make({"mlp", "gpt", "moe"}), model) {
  const auto names = [&](const std::vector<int>& layers) {
    ModelShape shape = options_for(program_for("1f1b", 2), model).shape;
    shape.layers = layers;
    const Feed feed;
    std::vector<std::string> all;
    for (int stage = 0; stage < static_cast<int>(layers.size()); ++stage) {
      for (const NamedTensor& each : make_stage(shape, stage, feed)->named_parameters()) all.push_back(each.name);
    }
    return all;
  };
  const auto whole = names({5});
  BOOST_TEST(names({1, 0, 3, 1}) == whole, boost::test_tools::per_element());
  BOOST_TEST(std::set<std::string>(whole.begin(), whole.end()).size() == whole.size());
}

BOOST_AUTO_TEST_CASE(copies_of_weights_are_saved_once_and_loaded_by_all) {
  const Scratch scratch;
  const TrainOptions common = options_for(program_for("dualpipe", 2), "gpt");
  (void)train_in_legs({{"dualpipe", 2, 2}}, scratch / "two chains", common);
  (void)train_in_legs({{"1f1b", 2, 2}}, scratch / "one chain", common);
  const auto names = [](const std::string& path) {
    const std::string bytes = bytes_of(path);
    std::vector<std::string> all;
    for (const auto& [name, tensor] : read(bytes).tensors) all.push_back(name);
    return all;
  };
  // 12 per block, 2 embeddings, 2 of the norm and one of the head; AdamW has two more of each.
  BOOST_TEST(names(scratch / "two chains").size() == 3U * (12 * 6 + 2 + 2 + 1));
  BOOST_TEST(names(scratch / "two chains") == names(scratch / "one chain"), boost::test_tools::per_element());

  const Program program = program_for("dualpipe", 4);
  TrainOptions options = options_for(program, "gpt");
  options.resume = scratch / "one chain";
  options.steps = 2;
  TrainObserver observer;
  observer.on_gradients = [&](int, std::span<Stage* const> stages) {
    for (std::size_t stage = 0; stage < 4; ++stage) {
      const auto first = stages[stage]->parameters();
      const auto copy = stages[stage + 4]->parameters();
      for (std::size_t i = 0; i < first.size(); ++i) BOOST_TEST(first[i].equal(copy[i]));
    }
  };
  (void)train(program, options, observer);
}

// --- what does not go together

BOOST_AUTO_TEST_CASE(another_training_is_refused) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program, "gpt");
  (void)train_in_legs({{"1f1b", 2, 1}}, scratch / "a", options);
  options.resume = scratch / "a";
  options.learning_rate = 0.5;  // may change
  options.clip = 0;
  options.shape.layers = {1, 5};
  BOOST_TEST(refusal([&] { (void)train(program, options); }) == "");

  const auto refused = [&](const auto& change) {
    TrainOptions other = options;
    change(other);
    const std::string what = refusal([&] { (void)train(program, other); });
    BOOST_TEST(what.starts_with(scratch / "a: "));
    BOOST_TEST(refusal([&] { Reference(program.schedule, other); }) == what);
    return what.substr((scratch / "a: ").size());
  };
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.hidden = 16; }) ==
             "was saved with --hidden '8', but this run has '16'; give the same --hidden, or leave --resume out");
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.model = "mlp"; }).starts_with("was saved with --model 'gpt'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.layers = {6, 1}; }).starts_with("was saved with --layers '6'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.heads = 4; }).starts_with("was saved with --heads '2'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.sequence = 3; }).starts_with("was saved with --sequence '4'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.vocabulary = 12; }).starts_with("was saved with --vocabulary '11'"));
  BOOST_TEST(refused([](TrainOptions& o) {
               o.shape.precision = Precision::float32;
             }).starts_with("its parameters are float64"));
  BOOST_TEST(refused([](TrainOptions& o) {
               o.optimizer = OptimizerKind::sgd;
             }).starts_with("was saved with --optimizer 'adamw'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.batch = 2; }).starts_with("was saved with --batch '1'"));
  BOOST_TEST(refused([](TrainOptions& o) { o.shape.seed = 6; }).starts_with("was saved with --seed '5'"));

  const Program longer = lower(generate("1f1b", {2, 2 * micro_batches, 1}));
  BOOST_TEST(refusal([&] { (void)train(longer, options); }).find("--microbatches '8'") != std::string::npos);
  options.steps = std::numeric_limits<int>::max();
  BOOST_TEST(refusal([&] { (void)train(program, options); }).find("number of steps") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(other_data_are_refused) {
  const Scratch scratch;
  put(scratch / "tokens", std::string(40, '\0'));
  put(scratch / "others", std::string(39, '\0') + std::string(5, '\0'));
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program, "gpt");
  options.data = scratch / "tokens";
  (void)train_in_legs({{"1f1b", 2, 1}}, scratch / "a", options);
  options.resume = scratch / "a";
  options.shape.seed = 77;  // of what was loaded
  BOOST_TEST(refusal([&] { (void)train(program, options); }) == "");
  options.data = scratch / "others";
  BOOST_TEST(refusal([&] { (void)train(program, options); }).find("give the same file to --data") != std::string::npos);
  put(scratch / "others", std::string(36, '\0') + '\1' + std::string(3, '\0'));
  BOOST_TEST(refusal([&] { (void)train(program, options); }).find("give the same file to --data") != std::string::npos);
  options.data = "";
  BOOST_TEST(refusal([&] { (void)train(program, options); }).find("give the same file to --data") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(two_models_in_one_schedule_are_refused) {
  Schedule schedule = generate("dualpipe", {2, micro_batches, 1});
  schedule.placement.weights_of = {0, 1, 2, 3};
  const Program program = lower(schedule);
  TrainOptions options = options_for(program);
  options.save = "/dev/null";
  BOOST_TEST(refusal([&] { (void)train(program, options); }).starts_with("stage 2 has not the weights of stage 0"));
}

// --- clipping

// Shared out in any way, with any order of the shares: the same bits, and a good sum.
BOOST_AUTO_TEST_CASE(the_global_norm_does_not_depend_on_who_holds_what) {
  Random random(1);
  const auto number = [&] { return std::ldexp(static_cast<double>(random.next() >> 11U), -53); };
  for (int round = 0; round < 200; ++round) {
    std::vector<double> squares;
    for (std::int64_t i = random.between(1, 40); i > 0; --i) {
      squares.push_back(std::ldexp(number(), static_cast<int>(random.between(-30, 0))));
    }
    const double plain = plain_sum(squares);
    const double all = sum_in_any_order(squares, plain);
    BOOST_TEST(all == plain, boost::test_tools::tolerance(1e-13));
    for (int way = 0; way < 5; ++way) {
      std::vector<std::vector<double>> shares(4);
      for (const double square : squares) shares[random.next() % 4].push_back(square);
      double magnitude = 0;
      for (const auto& share : shares) magnitude += plain_sum(share);
      double sum = 0;
      for (const auto& share : shares) sum += sum_in_any_order(share, magnitude);
      BOOST_TEST(sum == all);
    }
  }
  const double infinity = std::numeric_limits<double>::infinity();
  BOOST_TEST(sum_in_any_order(std::vector{1.0, infinity}, infinity) == infinity);
  BOOST_TEST(std::isnan(sum_in_any_order(std::vector{1.0, std::nan("")}, std::nan(""))));
  BOOST_TEST(sum_in_any_order(std::vector{0.0, 0.0}, 0) == 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
