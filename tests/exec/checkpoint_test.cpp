#include "dualpipe/exec/train/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/exec/training.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;
namespace fs = std::filesystem;

void put(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

SafeTensors read(const std::string& bytes) { return read_safetensors(std::as_bytes(std::span(bytes)), "it"); }

std::string text_of(const SafeTensors& contents) {
  std::ostringstream out;
  write_safetensors(out, contents);
  return out.str();
}

constexpr int micro_batches = 8;

Program program_for(std::string_view name, int ranks) { return program_of(name, ranks, micro_batches); }

// A model of six layers on whatever there is.
TrainOptions options_for(const Program& program, const std::string& model = "mlp") {
  TrainOptions options = tiny(program, model, 6);
  options.learning_rate = TrainOptions{}.learning_rate;
  options.optimizer = OptimizerKind::adamw;
  options.clip = 0.05;
  return options;
}

// Some steps of a training, by one schedule.
struct Leg {
  std::string_view schedule;
  int ranks;
  int steps;
};

// Trains leg by leg, each but the first from where the one before was saved. Returns the losses of all steps.
std::vector<double> train_in_legs(const std::vector<Leg>& legs, const std::string& path, const TrainOptions& common) {
  std::vector<double> losses;
  for (const Leg& leg : legs) {
    const Program program = program_for(leg.schedule, leg.ranks);
    TrainOptions options = common;
    options.shape.layers = options_for(program).shape.layers;
    options.steps = leg.steps;
    options.save = path;
    options.resume = losses.empty() ? "" : path;
    const TrainResult result = train(program, options);
    BOOST_TEST(result.first_step == static_cast<int>(losses.size()));
    losses.insert(losses.end(), result.losses.begin(), result.losses.end());
  }
  return losses;
}

bool adds_in_order(std::string_view name) { return family(name).chains == 1 && name != "looped-bfs"; }

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

// --- files that cannot be read

// Whatever is cut off or changed: an error, or another value, but nothing worse.
BOOST_AUTO_TEST_CASE(damaged_files) {
  const Scratch scratch;
  TrainOptions options = options_for(program_for("1f1b", 1));
  options.shape.hidden = 1;
  (void)train_in_legs({{"1f1b", 1, 1}}, scratch / "a", options);
  const std::string whole = bytes_of(scratch / "a");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    BOOST_TEST(refusal([&] { (void)read(cut); }).starts_with("it: "), "cut after " << size << " bytes");
  }
  BOOST_TEST(refusal([&] { (void)read(whole + '\0'); }).find("the file was damaged") != std::string::npos);

  std::size_t refused = 0;
  Random random(3);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(static_cast<std::uint64_t>(changed[i]) ^ (1 + random.next() % 255));
    refused += refusal([&] { (void)read(changed); }).empty() ? 0U : 1U;
  }
  BOOST_TEST(refused > 1000U);
}

std::string with_header(const std::string& header, std::size_t data_size = 0) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(data_size, 'x');
}

BOOST_AUTO_TEST_CASE(files_made_to_mislead) {
  const auto refused = [](const std::string& header, std::size_t data_size = 8) {
    const std::string bytes = with_header(header, data_size);
    return refusal([&] { (void)read(bytes); });
  };
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}   )") == "");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2, 0, 99999999999, 99999999999], "data_offsets": [0, 0]}})",
                     0) == "");
  BOOST_TEST(refused("[]") == "it: the header is no JSON object; this is no safetensors file");
  BOOST_TEST(refused("{").find("is no JSON") != std::string::npos);
  BOOST_TEST(refused(R"({"__metadata__": 3})").find("__metadata__") != std::string::npos);
  BOOST_TEST(refused(R"({"__metadata__": {"steps": 3}})").find("__metadata__.'steps': expected a string") !=
             std::string::npos);
  BOOST_TEST(refused("{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}").find("too deeply") !=
             std::string::npos);
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                         "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})") ==
             "it: 'a' is in the header twice");
  BOOST_TEST(refused(R"({"a": 3})") == "it: tensor 'a': expected an object, not number");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2]}})") == "it: tensor 'a': \"data_offsets\" is missing");
  BOOST_TEST(refused(R"({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}})") ==
             "it: tensor 'a'.dtype: 'BF16' is not supported; F32 and F64 are");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})").find("shape[0]: expected") !=
             std::string::npos);
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})") ==
             "it: tensor 'a': its shape and type take 12 bytes, but its data_offsets 8");
  // 2^32 * 2^32 * 4 is 0, but for the bits that are lost.
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", 0) ==
             "it: tensor 'a'.shape: has more elements than a file can hold");
  for (const auto* const offsets : {"[0, 16]", "[0, 18446744073709551615]", "[8, 0]", "[-8, 0]", "[0]", "[0, 4, 8]"}) {
    const std::string header = fmt::format(R"({{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {}}}}})", offsets);
    BOOST_TEST(refused(header).find("'a'.data_offsets") != std::string::npos, offsets);
  }
  const auto two = [&](const char* first, const char* second) {
    return refused(fmt::format(R"({{"a": {{"dtype": "F32", "shape": [1], "data_offsets": {}}},
                                    "b": {{"dtype": "F32", "shape": [1], "data_offsets": {}}}}})",
                               first, second),
                   12);
  };
  BOOST_TEST(two("[0, 4]", "[2, 6]").find("tensor 'b': its data begin at byte 2, and those before it end at 4") !=
             std::string::npos);
  BOOST_TEST(two("[0, 4]", "[0, 4]").find("tensor 'b'") != std::string::npos);
  BOOST_TEST(two("[8, 12]", "[0, 4]").find("tensor 'a'") != std::string::npos);  // a gap
  BOOST_TEST(two("[4, 8]", "[0, 4]").find("12 bytes of data, but its tensors take 8") != std::string::npos);
  std::string huge = with_header("{}");
  huge.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff");
  BOOST_TEST(refusal([&] { (void)read(huge); }).find("its header would have") != std::string::npos);
}

// A file that is sound, but not what this model needs.
BOOST_AUTO_TEST_CASE(tensors_that_are_not_the_models) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  (void)train_in_legs({{"1f1b", 2, 1}}, scratch / "a", options);
  const std::string bytes = bytes_of(scratch / "a");
  options.resume = scratch / "b";
  const auto refused = [&](const auto& change) {
    SafeTensors contents = read(bytes);
    change(contents);
    put(scratch / "b", text_of(contents));
    const std::string what = refusal([&] { (void)train(program, options); });
    BOOST_TEST(refusal([&] { Reference(program.schedule, options); }) == what);
    return what.substr(std::min(what.size(), options.resume.size() + 2));
  };
  BOOST_TEST(refused([](SafeTensors&) {}) == "");
  BOOST_TEST(refused([](SafeTensors& c) { c.tensors.erase("layers.4.up.weight"); }) ==
             "lacks tensor 'layers.4.up.weight', which this model has; give the file of the same model");
  BOOST_TEST(refused([](SafeTensors& c) {
               c.tensors.erase("optimizer.exp_avg_sq.layers.0.up.weight");
             }).starts_with("lacks tensor 'optimizer.exp_avg_sq.layers.0.up.weight'"));
  BOOST_TEST(refused([](SafeTensors& c) { c.tensors["layers.6.up.weight"] = c.tensors.at("layers.5.up.weight"); }) ==
             "has tensor 'layers.6.up.weight', which this model has not; give the file of the same model");
  BOOST_TEST(refused([](SafeTensors& c) {
               std::swap(c.tensors["layers.1.up.weight"].shape[0], c.tensors["layers.1.up.weight"].shape[1]);
             }) ==
             "tensor 'layers.1.up.weight' is Double[8,32], and this model's is Double[32,8]; give the file of the same "
             "model");
  BOOST_TEST(
      refused([](SafeTensors& c) { c.metadata.erase("format"); }).starts_with("is a safetensors file, but of no "));
  BOOST_TEST(refused([](SafeTensors& c) { c.metadata["version"] = "2"; }).starts_with("made by another version"));
  BOOST_TEST(refused([](SafeTensors& c) {
               c.metadata["hidden"] = "\033[2J\n";
             }).starts_with("was saved with --hidden '\\x1b[2J\\x0a', but this run has '8'"));
  BOOST_TEST(refused([](SafeTensors& c) { c.metadata.erase("hidden"); }).starts_with("its metadata lack 'hidden'"));
  BOOST_TEST(refused([](SafeTensors& c) { c.metadata["steps"] = "-1"; }).starts_with("its number of steps: '-1'"));
  BOOST_TEST(refused([](SafeTensors& c) { c.metadata["steps"] = "1e3"; }).starts_with("its number of steps: '1e3'"));

  options.resume = scratch / "none";
  BOOST_TEST(
      refusal([&] { (void)train(program, options); }).ends_with("none: cannot be opened: No such file or directory"));
  options.resume = scratch / ".";
  BOOST_TEST(refusal([&] { (void)train(program, options); }).find("is not a regular file") != std::string::npos);
}

// --- the format

BOOST_AUTO_TEST_CASE(what_is_written_is_read_back) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor doubles = at::tensor({nan, infinity, -0.0, 5e-324}).view({2, 1, 2});
  const at::Tensor floats = at::tensor({1.5F, -2.25F, 0.1F});
  const at::Tensor scalar = at::full({}, 3.0F);
  const at::Tensor none = at::empty({2, 0}, at::kDouble);
  SafeTensors contents;
  contents.metadata = {{"key", "a value with \"quotes\", \\ and \n"}, {"", ""}};
  contents.tensors = {{"z", view_of(doubles)}, {"a b", view_of(floats)}, {"m", view_of(none)}, {"µ", view_of(scalar)}};
  const std::string text = text_of(contents);
  const SafeTensors back = read(text);
  BOOST_TEST((back.metadata == contents.metadata));
  BOOST_TEST(back.tensors.size() == 4U);
  for (const auto& [name, tensor] : contents.tensors) {
    const TensorView& other = back.tensors.at(name);
    BOOST_TEST((other.dtype == tensor.dtype && other.shape == tensor.shape));
    BOOST_TEST(std::ranges::equal(other.data, tensor.data), name);
  }
  BOOST_TEST((text_of(back) == text));
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  BOOST_TEST(length % 8 == 0U);
  BOOST_TEST(text.size() == 8 + length + 4 * 8 + 3 * 4 + 4);
}

// --- files that cannot be written

// What has been saved stays, and nothing is left beside it.
BOOST_AUTO_TEST_CASE(a_full_disk_leaves_the_last_save) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  options.save = scratch / "a";
  options.save_every = 1;
  options.steps = 3;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  std::string saved;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) {
    if (step.step != 1) return;
    saved = bytes_of(options.save);
    const rlimit limit{saved.size() / 2, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  };
  int failed_at = -1;
  observer.on_failure = [&](int step, const Program&, std::span<const RankRecord>) { failed_at = step; };
  const std::string what = refusal([&] { (void)train(program, options, observer); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_DFL);
  BOOST_TEST(what == fmt::format("cannot write {}: File too large", options.save));
  BOOST_TEST(failed_at == 2);
  BOOST_TEST(read(saved).metadata.at("steps") == "1");
  BOOST_TEST((bytes_of(options.save) == saved));
  BOOST_TEST(scratch.files() == std::vector<std::string>{"a"}, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(what_cannot_be_written_is_known_before_the_run) {
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  bool began = false;
  options.before_op = [&](int, Op) { began = true; };
  options.save = "/nowhere/a";
  BOOST_TEST(refusal([&] { (void)train(program, options); }) == "cannot write /nowhere/a: No such file or directory");
  options.save = "/";
  BOOST_TEST(refusal([&] { (void)train(program, options); }) == "cannot write /: is a folder");
  BOOST_TEST(!began);
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
