// Types of numbers: mixed precision, what a check allows, and what must hold where tensors are not in the host's
// memory.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "dualpipe/exec/model/device_data.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/training.h"

namespace dualpipe::test {

using detail::model::DeviceData;
using detail::train::Optimizer;
using detail::train::StageSet;

namespace {

namespace data = boost::unit_test::data;

const std::vector<std::string> models = {"mlp", "gpt", "moe"};

TrainOptions mixed(const Program& program, const std::string& model) {
  TrainOptions options = tiny(program, model);
  options.shape.precision = Precision::bfloat16;
  options.shape.hidden = 16;
  options.steps = 3;
  return options;
}

at::Tensor with_gradient(const std::vector<double>& values) {
  at::Tensor parameter = at::zeros({static_cast<std::int64_t>(values.size())}, at::kDouble);
  parameter.mutable_grad() = at::tensor(values);
  return parameter;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_precision)

// --- bfloat16

BOOST_DATA_TEST_CASE(mixed_precision_trains_like_the_model_by_itself, data::make(family_names()) * data::make(models),
                     name, model) {
  const Program program = program_of(name, 2);
  const CheckReport report = checked(program, mixed(program, model));
  BOOST_TEST(report.failure == "");
  BOOST_TEST(report.steps == 3);
  if (report.same_order) BOOST_TEST(report.losses_bitwise_equal);
  if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
  BOOST_TEST(report.gradients.relative_l2 <= 1e-2);
  BOOST_REQUIRE(report.from_float32.has_value());
  BOOST_TEST(report.from_float32->relative_l2 > 1e-4);  // it is another type
  BOOST_TEST(report.from_float32->relative_l2 <= report.tolerance.rounding);
}

BOOST_DATA_TEST_CASE(mixed_precision_learns, data::make(models), model) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = mixed(program, model);
  options.optimizer = OptimizerKind::adamw;
  options.learning_rate = 0.01;
  options.steps = 30;
  const std::vector<double> losses = train(program, options).losses;
  options.shape.precision = Precision::float32;
  const std::vector<double> expected = train(program, options).losses;
  BOOST_TEST(losses.back() < 0.9 * losses.front());
  BOOST_TEST(losses.back() == expected.back(), boost::test_tools::tolerance(0.1));
  BOOST_TEST(losses != expected);
}

// Parameters, gradients and optimizer in float32, a copy of each Linear in bfloat16; messages are bfloat16.
BOOST_AUTO_TEST_CASE(what_a_stage_holds_and_sends) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = mixed(program, "mlp");
  options.shape.layers = {1, 1};
  options.optimizer = OptimizerKind::adamw;
  options.steps = 1;
  constexpr Bytes numbers = 2 * 16 * 64;
  const auto check = [&](const StageBytes& first, Bytes message) {
    const TrainResult result = train(program, options);
    BOOST_TEST((result.stages[0] == first));
    BOOST_TEST(result.records[0].memory[0].output == message);
  };
  check({.parameters = 6 * numbers, .gradients = 4 * numbers, .optimizer = 8 * numbers}, 2 * 16);
  options.shape.precision = Precision::float32;
  check({.parameters = 4 * numbers, .gradients = 4 * numbers, .optimizer = 8 * numbers}, 4 * 16);
}

// LibTorch's SGD changes parameters behind their backs.
BOOST_DATA_TEST_CASE(the_copies_follow_the_optimizer, data::make({"sgd", "adamw"}), optimizer) {
  const Program program = program_of("1f1b", 1);
  TrainOptions options = mixed(program, "mlp");
  options.optimizer = optimizer == std::string("sgd") ? OptimizerKind::sgd : OptimizerKind::adamw;
  const std::vector<int> numbers{0};
  StageSet stages(program.schedule, options, numbers);
  Stage& stage = *stages.by_number()[0];
  Optimizer algorithm(options, stages.all_parameters());
  const auto loss_of = [](Stage& of) { return of.forward(0, {}).at(0).item<double>(); };
  const double before = loss_of(stage);
  (void)stage.backward(0, {});
  algorithm.step();

  StageSet others(program.schedule, options, numbers);
  Stage& other = *others.by_number()[0];
  BOOST_TEST(loss_of(other) == before);
  {
    const c10::NoGradGuard no_gradients;
    for (std::size_t i = 0; i < stage.parameters().size(); ++i) other.parameters()[i].copy_(stage.parameters()[i]);
  }
  const double after = loss_of(stage);
  BOOST_TEST(after != before);
  BOOST_TEST(after == loss_of(other));
}

BOOST_AUTO_TEST_CASE(a_training_goes_on_in_the_other_type) {
  const std::string file =
      (std::filesystem::temp_directory_path() / ("dualpipe_precision_" + std::to_string(::getpid()))).string();
  const Program program = program_of("zb1p", 2);
  TrainOptions options = mixed(program, "gpt");
  options.save = file;
  (void)train(program, options);
  options.resume = file;
  options.save.clear();
  const std::vector<double> same = train(program, options).losses;
  options.shape.precision = Precision::float32;
  const std::vector<double> other = train(program, options).losses;
  BOOST_TEST(other[0] != same[0]);
  BOOST_TEST(other[0] == same[0], boost::test_tools::tolerance(1e-2));

  options.shape.precision = Precision::float64;
  BOOST_CHECK_EXCEPTION(train(program, options), InputError, [&](const InputError& error) {
    return error.what() == file +
                               ": its parameters are float32, but this run's are float64; use --dtype float32 or "
                               "bfloat16, or leave --resume out";
  });
  std::filesystem::remove(file);
}

// --- the check

BOOST_AUTO_TEST_CASE(differences_of_gradients) {
  const std::vector<at::Tensor> a{with_gradient({3, 4}), with_gradient({0})};
  const std::vector<at::Tensor> b{with_gradient({3, 0}), with_gradient({4})};
  const auto difference = GradientDifference::between(a, b);
  BOOST_TEST(!difference.bitwise_equal);
  BOOST_TEST(difference.largest == 4);
  BOOST_TEST(difference.relative_l2 == std::sqrt(32.0 / 25));
  BOOST_TEST(difference.cosine == 1 - 2 * 9.0 / (25 + 25));

  auto worst = GradientDifference::between(b, b);
  BOOST_TEST(worst.bitwise_equal);
  BOOST_TEST(worst.relative_l2 == 0);
  worst.add(difference);
  worst.add(GradientDifference::between(b, b));
  BOOST_TEST(worst.relative_l2 == difference.relative_l2);
  const std::vector<at::Tensor> nan{with_gradient({std::nan(""), 0}), with_gradient({4})};
  worst.add(GradientDifference::between(nan, b));
  BOOST_TEST(std::isnan(worst.relative_l2));
  const std::vector<at::Tensor> zero{with_gradient({0, 0}), with_gradient({0})};
  BOOST_TEST(GradientDifference::between(a, zero).relative_l2 == std::numeric_limits<double>::infinity());
}

// Nothing but a host adds in one order.
BOOST_AUTO_TEST_CASE(tolerances) {
  const auto tolerance = [](Precision precision, int layers, bool on_host) {
    ModelShape shape;
    shape.precision = precision;
    shape.layers = {layers, 0};
    return Tolerance::of(shape, on_host);
  };
  for (const Precision precision : {Precision::float32, Precision::float64, Precision::bfloat16}) {
    BOOST_TEST(tolerance(precision, 2, true).losses_bitwise);
    BOOST_TEST(!tolerance(precision, 2, false).losses_bitwise);
    BOOST_TEST(!tolerance(precision, 2, false).gradients_bitwise);
    BOOST_TEST(tolerance(precision, 2, true).gradients_bitwise == (precision != Precision::float32));
  }
  BOOST_TEST(tolerance(Precision::float64, 2, false).cosine == 1e-13);
  BOOST_TEST(tolerance(Precision::float32, 8, false).relative_l2 == 1e-5);
  BOOST_TEST(tolerance(Precision::bfloat16, 8, false).relative_l2 == 1e-2);
  BOOST_TEST(tolerance(Precision::bfloat16, 0, false).rounding == 1e-2);
  BOOST_TEST(tolerance(Precision::bfloat16, 1, false).rounding == 1e-2);
  BOOST_TEST(tolerance(Precision::bfloat16, 9, true).rounding == 3e-2);
}

// In order a bit is too much; else what rounding does not explain.
BOOST_AUTO_TEST_CASE(the_check_notices_wrong_gradients_in_mixed_precision) {
  for (const auto& [name, factor] : std::vector<std::pair<std::string, double>>{
           {"1f1b", 1 + 1e-5}, {"looped-bfs", 1.02}, {"looped-bfs", std::nan("")}}) {
    const Program program = program_of(name, 2);
    TrainOptions options = mixed(program, "mlp");
    options.steps = 1;
    const auto spoil = [factor = factor](std::span<Stage* const> stages) {
      for (const at::Tensor& parameter : stages[1]->parameters()) parameter.grad().mul_(factor);
    };
    BOOST_TEST_CONTEXT(name << " times " << factor) {
      BOOST_TEST(checked(program, options, spoil).failure.starts_with("step 0: the gradients of stage 1 differ"));
    }
  }
}

BOOST_AUTO_TEST_CASE(the_report_says_what_was_allowed_and_reached) {
  const Program program = program_of("1f1b", 2);
  const CheckReport report = checked(program, mixed(program, "gpt"));
  const std::string text = to_text(report);
  BOOST_TEST(text.find("losses bitwise equal, gradients bitwise equal\n") != std::string::npos);
  BOOST_TEST(text.find("bfloat16: gradients must be bitwise equal; from float32 they differ by a relative L2 of 0.0") !=
             std::string::npos);
  BOOST_TEST(text.find("is allowed\n") != std::string::npos);
}

// --- tensors that are not in the host's memory

namespace {

// Knows whether what it was given to do is done; computes on the host, or, at::kMeta, nothing at all: then any tensor
// of the host that comes to an op is an error.
class Recording final : public Device {
 public:
  explicit Recording(at::Device where = at::kCPU) : where_(where) {}

  [[nodiscard]] at::Device where() const override { return where_; }
  void begin_step() override {}
  void use(Stream stream) override {
    stream_ = stream;
    finished_ = false;
  }
  [[nodiscard]] Stream used() const override { return stream_; }
  [[nodiscard]] Event record_event() override { return host_device().record_event(); }
  void wait(const Event&) override {}
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event&) override { return tensor; }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event&) override { return tensor; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override { finished_ = true; }
  [[nodiscard]] Time time_of(const Event& event) const override { return event.time; }

  [[nodiscard]] bool finished() const { return finished_; }

 private:
  at::Device where_;
  Stream stream_{Stream::Kind::message, 7};
  bool finished_ = true;
};

// Devices that outlive their users, to be looked at.
class RecordingHardware final : public Hardware {
 public:
  [[nodiscard]] std::string description() const override { return "recording"; }
  [[nodiscard]] std::unique_ptr<Device> device(int index, int, int) override {
    return std::make_unique<Borrowed>(ranks.at(static_cast<std::size_t>(index)));
  }
  [[nodiscard]] std::unique_ptr<Device> whole() override {
    ++wholes;
    return std::make_unique<Borrowed>(reference);
  }

  std::vector<Recording> ranks = std::vector<Recording>(2);
  Recording reference;
  int wholes = 0;

 private:
  class Borrowed final : public Device {
   public:
    explicit Borrowed(Recording& device) : device_(device) {}
    [[nodiscard]] at::Device where() const override { return device_.where(); }
    void begin_step() override { device_.begin_step(); }
    void use(Stream stream) override { device_.use(stream); }
    [[nodiscard]] Stream used() const override { return device_.used(); }
    [[nodiscard]] Event record_event() override { return device_.record_event(); }
    void wait(const Event& event) override { device_.wait(event); }
    [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override {
      return device_.adopt(std::move(tensor), ready);
    }
    [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override {
      return device_.take(std::move(tensor), ready);
    }
    [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return device_.exchange(tensor); }
    void finish() override { device_.finish(); }
    [[nodiscard]] Time time_of(const Event& event) const override { return device_.time_of(event); }

   private:
    Recording& device_;
  };
};

// Counts.
class CountedData final : public Data {
 public:
  explicit CountedData(int& reads) : reads_(reads) {}
  [[nodiscard]] at::Tensor input(std::int64_t step, std::int64_t micro_batch) override {
    ++reads_;
    return at::full({2}, static_cast<double>(100 * step + micro_batch));
  }
  [[nodiscard]] at::Tensor target(std::int64_t step, std::int64_t micro_batch) override {
    return input(step, micro_batch).neg();
  }

 private:
  int& reads_;
};

}  // namespace

BOOST_AUTO_TEST_CASE(samples_are_on_the_device_before_a_step) {
  int reads = 0;
  Recording device;
  DeviceData samples(std::make_unique<CountedData>(reads), device);
  samples.begin_step(3, {{4, 2}}, {{4, 2}, {8, 1}});
  BOOST_TEST(reads == 5);
  BOOST_TEST(samples.input(3, 5)[0].item<double>() == 305);
  BOOST_TEST(samples.target(3, 8)[0].item<double>() == -308);
  BOOST_TEST(reads == 5);
  BOOST_CHECK_THROW((void)samples.input(3, 8), InputError);
  samples.begin_step(4, {{4, 1}}, {});
  BOOST_TEST(samples.input(4, 4)[0].item<double>() == 404);
  BOOST_CHECK_THROW((void)samples.input(4, 5), InputError);
}

// A tensor of the host among those of a device ends the op. (For gpt, and for
// the backward of a loss, LibTorch's meta device lacks kernels.)
BOOST_DATA_TEST_CASE(a_stage_computes_with_tensors_of_its_device_alone,
                     data::make({Precision::float32, Precision::bfloat16}), precision) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = mixed(program, "mlp");
  options.shape.precision = precision;
  options.optimizer = OptimizerKind::adamw;
  Recording device(at::kMeta);
  const std::vector<int> numbers{0, 1, 2, 3};
  StageSet stages(program.schedule, options, numbers, device);
  BOOST_TEST((device.used() == Stream{}));
  Optimizer optimizer(options, stages.all_parameters());
  for (int step = 0; step < 2; ++step) {
    stages.begin_step(step);
    optimizer.zero_gradients();
    for (const std::size_t first : {0U, 2U}) {
      Stage& begin = *stages.by_number()[first];
      Stage& end = *stages.by_number()[first + 1];
      const at::Tensor output = begin.forward(0, {}).at(0);
      BOOST_TEST(output.is_meta());
      BOOST_TEST(end.forward(0, {output}).at(0).is_meta());
      (void)begin.backward(0, {at::zeros_like(output)});
    }
    optimizer.step();
  }
}

// Gradients when they are looked at, and everything when a step ends: the ranks' threads do not wait for each other's
// devices.
BOOST_AUTO_TEST_CASE(devices_have_finished_when_others_look) {
  const Program program = program_of("dualpipe", 2);
  RecordingHardware hardware;
  TrainOptions options = mixed(program, "gpt");
  options.hardware = &hardware;
  options.clip = 0.1;
  options.shape.tied = true;
  const auto world = one_process();
  Check check(*world, program.schedule, options);
  BOOST_TEST(hardware.wholes == 2);  // in bfloat16 and in float32
  int looks = 0;
  const auto look = [&] {
    ++looks;
    for (const Recording& rank : hardware.ranks) BOOST_TEST(rank.finished());
    BOOST_TEST(hardware.reference.finished());
  };
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
    look();
    check.on_gradients(step, stages);
    look();
    for (Recording& rank : hardware.ranks) rank.use({Stream::Kind::message, 7});  // as the reference may
  };
  observer.on_step = [&](const StepReport& step) {
    look();
    check.on_step(step);
    for (const Recording& rank : hardware.ranks) BOOST_TEST((rank.used() == Stream{}));
  };
  (void)train(program, options, observer);
  BOOST_TEST(looks == 9);
  BOOST_TEST(check.report().failure == "");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
