// Files that a training cannot go on from, or that it cannot write.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/checkpoint.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "tests/exec/legs.h"
#include "tests/exec/training.h"
#include "tests/scratch.h"

namespace dualpipe::test {

using detail::train::Checkpoint;
using detail::train::make_data;
using detail::train::Optimizer;
using detail::train::SafeTensors;
using detail::train::StageSet;
using detail::train::TensorView;
using detail::train::view_of;

namespace {

namespace data = boost::unit_test::data;

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_checkpoint_files)

// --- files that cannot be gone on with

// Wherever it is.
BOOST_AUTO_TEST_CASE(a_flipped_bit_is_refused) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 1);
  TrainOptions options = tiny(program, "mlp", 1);
  options.shape.hidden = 1;
  options.optimizer = OptimizerKind::adamw;
  options.save = scratch / "a";
  (void)train(program, options);
  options.resume = options.save;
  const std::vector<int> stage{0};
  StageSet stages(program.schedule, options, stage);
  Optimizer optimizer(options, stages.all_parameters());
  const auto data = make_data(program.schedule, options);
  const auto load = [&] {
    const Checkpoint checkpoint(program.schedule, options, *data);
    checkpoint.check_complete(checkpoint.load(stages, optimizer));
  };
  load();
  const std::string whole = bytes_of(options.resume);
  std::fstream file(options.resume, std::ios::in | std::ios::out | std::ios::binary);
  const auto put_byte = [&file](std::size_t place, char byte) {
    file.seekp(static_cast<std::streamoff>(place));
    file.put(byte).flush();
  };
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    const std::size_t place = bit / 8;
    put_byte(place, static_cast<char>(whole[place] ^ (1 << (bit % 8))));
    BOOST_TEST(refusal(load).starts_with(options.resume + ": "), "bit " << bit << " of " << 8 * whole.size());
    put_byte(place, whole[place]);
  }
  load();
}

BOOST_AUTO_TEST_CASE(a_file_without_checksums_is_refused) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  (void)train_in_legs({{"1f1b", 2, 1}}, scratch / "a", options);
  std::string bytes = bytes_of(scratch / "a");
  bytes.replace(bytes.find("header_crc32"), 12, "header_crc-2");
  put(scratch / "b", bytes);
  options.resume = scratch / "b";
  BOOST_TEST(refusal([&] { (void)train(program, options); }) ==
             options.resume +
                 ": has no checksum where --save writes it: it was damaged, or another tool has written it; "
                 "give a file that --save wrote");
}

// Of one rank, or the other; of the model, or the optimizer.
BOOST_DATA_TEST_CASE(
    what_is_not_finite_is_not_gone_on_with,
    data::make({"layers.0.up.weight", "layers.5.down.weight", "optimizer.exp_avg_sq.layers.4.up.weight"}) *
        data::make({std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}),
    name, value) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  (void)train_in_legs({{"1f1b", 2, 1}}, scratch / "a", options);
  const std::string bytes = bytes_of(scratch / "a");
  SafeTensors contents = read(bytes);
  TensorView& view = contents.tensors.at(name);
  at::Tensor values = at::ones(view.shape, at::kDouble);
  values.flatten()[7].fill_(value);
  view = view_of(values);
  options.resume = scratch / "b";
  put(options.resume, text_of(contents));
  const std::string expected = fmt::format(
      "{}: tensor '{}' has {} at element 7 of 256: the training had broken down when it was saved; give an "
      "earlier save",
      options.resume, name, std::abs(value));
  BOOST_TEST(refusal([&] { (void)train(program, options); }) == expected);
  BOOST_TEST(refusal([&] { Reference(program.schedule, options); }) == expected);
  const Program forwards = lower(forwards_of(program.schedule));
  options.forward_only = true;  // has no optimizer
  const bool is_of_model = !std::string_view(name).starts_with("optimizer.");
  BOOST_TEST(refusal([&] { (void)train(forwards, options); }) == (is_of_model ? expected : ""));
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
  BOOST_TEST(refused([](SafeTensors& c) { c.metadata["version"] = "1"; }).starts_with("made by another version"));
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

// A gradient that is no number; and one whose square, which AdamW keeps, is too large for one.
BOOST_DATA_TEST_CASE(what_is_not_finite_does_not_replace_the_last_save,
                     data::make({std::numeric_limits<double>::quiet_NaN(), 1e200}), gradient) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  options.clip = 0;
  options.save = scratch / "a";
  options.save_every = 1;
  options.steps = 2;
  std::string saved;
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
    if (step != 1) return;
    saved = bytes_of(options.save);
    stages[1]->parameters()[0].mutable_grad().flatten()[3].fill_(gradient);
  };
  BOOST_CHECK_EXCEPTION((void)train(program, options, observer), ReplayError, [&](const ReplayError& error) {
    const bool is_nan = std::isnan(gradient);
    BOOST_TEST(
        error.what() ==
        fmt::format("rank 1: tensor '{}layers.3.up.weight' has {} at element 3 of 256 after step 1, so that {} was "
                    "not saved again; a lower --learning-rate or a --clip may help",
                    is_nan ? "" : "optimizer.exp_avg_sq.", is_nan ? "nan" : "inf", options.save));
    return true;
  });
  BOOST_TEST(read(saved).metadata.at("steps") == "1");
  BOOST_TEST((bytes_of(options.save) == saved));
  BOOST_TEST(scratch.files() == std::vector<std::string>{"a"}, boost::test_tools::per_element());
}

// --- a run that does not come to its end

// Whatever ends it in the midst of a step, on one rank or from outside: the file is that of a run up to that step.
BOOST_DATA_TEST_CASE(a_run_that_ends_early_is_saved_after_its_last_whole_step,
                     data::make({"throws", "stops"}) * data::make({"1f1b", "zb1p", "dualpipe"}), how, name) {
  const Scratch scratch;
  const Program program = program_for(name, 2);
  TrainOptions options = options_for(program);
  options.steps = 3;
  options.save = scratch / "three";
  (void)train(program, options);

  options.steps = 10;
  options.save = scratch / "ended";
  std::atomic<int> step = 0;
  std::stop_source source;
  options.stop = source.get_token();
  options.before_op = [&](int rank, Op op) {
    if (step != 3 || rank != 1 || op.kind == Kind::forward) return;
    if (how == std::string_view("throws")) throw std::runtime_error("no more");
    source.request_stop();
  };
  TrainObserver observer;
  observer.on_step = [&](const StepReport& report) { step = report.step + 1; };
  std::vector<std::pair<int, std::string>> saved;
  observer.on_last_save = [&](int steps_done, const std::string& failure) { saved.emplace_back(steps_done, failure); };
  BOOST_CHECK_THROW((void)train(program, options, observer), std::runtime_error);
  BOOST_TEST((saved == std::vector<std::pair<int, std::string>>{{3, ""}}));
  BOOST_TEST((bytes_of(scratch / "ended") == bytes_of(scratch / "three")));
}

// No step, no save: what was there stays. Nor is one of parameters that are no numbers.
BOOST_AUTO_TEST_CASE(what_a_run_that_ends_early_does_not_save) {
  const Scratch scratch;
  const Program program = program_for("1f1b", 2);
  TrainOptions options = options_for(program);
  options.clip = 0;
  options.steps = 3;
  options.save = scratch / "a";
  put(options.save, "there");
  std::vector<std::pair<int, std::string>> saved;
  TrainObserver observer;
  observer.on_last_save = [&](int steps_done, const std::string& failure) { saved.emplace_back(steps_done, failure); };
  options.before_op = [](int, Op op) {
    if (op.kind == Kind::backward) throw std::runtime_error("no more");
  };
  BOOST_CHECK_THROW((void)train(program, options, observer), std::runtime_error);
  BOOST_TEST(saved.empty());
  BOOST_TEST(bytes_of(options.save) == "there");

  options.before_op = {};
  observer.on_gradients = [](int step, std::span<Stage* const> stages) {
    if (step == 1) stages[1]->parameters()[0].mutable_grad().fill_(std::numeric_limits<double>::quiet_NaN());
  };
  BOOST_CHECK_THROW((void)train(program, options, observer), std::runtime_error);
  BOOST_REQUIRE(saved.size() == 1U);
  BOOST_TEST(saved[0].first == 2);
  BOOST_TEST(saved[0].second.find("was not saved again") != std::string::npos, saved[0].second);
  BOOST_TEST(bytes_of(options.save) == "there");
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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
