#include "dualpipe/exec/train/reference.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "dualpipe/exec/train/checkpoint.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/transport/pack.h"

namespace dualpipe {

using detail::train::Checkpoint;
using detail::train::clip_gradients;
using detail::train::gather;
using detail::train::gradient_squares;
using detail::train::is_first_with_weights;
using detail::train::make_data;
using detail::train::mean_loss;
using detail::train::Optimizer;
using detail::train::plain_sum;
using detail::train::set_up_arithmetic;
using detail::train::StageSet;
using detail::train::sum_in_any_order;
using detail::transport::Packer;
using detail::transport::Unpacker;

namespace {

std::vector<int> all_stages(const Placement& placement) {
  std::vector<int> numbers(placement.rank_of.size());
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

// Each stage adds the gradients of its micro-batches in order.
bool adds_in_order(const Schedule& schedule) {
  std::vector<std::int64_t> last(schedule.placement.rank_of.size(), -1);
  return std::ranges::all_of(schedule.ops, [&](Op op) {
    if (op.kind != Kind::backward && op.kind != Kind::weight_gradient) return true;
    return std::exchange(last[op.stage], op.micro_batch) < op.micro_batch;
  });
}

// What a pipeline recomputes is kept here: it must be the same.
TrainOptions without_recomputation(TrainOptions options) {
  options.shape.recompute = Recompute::none;
  return options;
}

// Its parameters come from another.
TrainOptions in_float32(TrainOptions options) {
  options.shape.precision = Precision::float32;
  options.resume.clear();
  return options;
}

}  // namespace

struct Reference::Parts {
  Parts(const Schedule& s, const TrainOptions& o)
      : schedule(s),
        options(o),
        own_device(o.hardware == nullptr ? nullptr : o.hardware->whole()),
        device(own_device ? *own_device : host_device()),
        data(make_data(s, o)),
        stages(s, without_recomputation(o), all_stages(s.placement), device, data),
        optimizer(o, stages.all_parameters()) {
    if (o.resume.empty()) return;
    const Checkpoint checkpoint(s, o, *data);
    checkpoint.check_complete(checkpoint.load(stages, optimizer));
  }

  const Schedule& schedule;
  const TrainOptions& options;
  std::unique_ptr<Device> own_device;  // null: the host's
  Device& device;
  std::shared_ptr<Data> data;
  StageSet stages;
  Optimizer optimizer;

  double run(int chain, std::uint32_t micro_batch) {
    const auto begin = static_cast<std::size_t>(chain);
    const auto in_chain = stages.by_number().subspan(
        schedule.placement.chain_begin[begin],
        static_cast<std::size_t>(schedule.placement.chain_begin[begin + 1] - schedule.placement.chain_begin[begin]));
    Tensors outputs;
    for (Stage* const stage : in_chain) outputs = stage->forward(micro_batch, std::move(outputs));
    const double loss = outputs.at(0).item<double>();
    Tensors gradients;
    for (auto stage = in_chain.rbegin(); stage != in_chain.rend(); ++stage) {
      gradients = (*stage)->backward(micro_batch, std::move(gradients));
    }
    return loss;
  }

  // Every copy of a parameter gets the sum of the gradients of all, added in the order of the stages.
  void reduce() {
    stages.add_up_gradients();
    const Placement& placement = schedule.placement;
    for (int stage = 0; stage < placement.stages(); ++stage) {
      if (is_first_with_weights(placement, stage)) sum_gradients(placement.sharers_of(stage), untied_parameters);
    }
    sum_gradients(stages.tied_stages(), [](Stage& stage) { return stage.tied_parameters(); });
  }

  [[nodiscard]] double global_squared_norm() const {
    const std::vector<double> all = gradient_squares(stages.counted_parameters());
    return sum_in_any_order(all, plain_sum(all));
  }

 private:
  template <typename ParametersOf>
  void sum_gradients(std::span<const int> numbers, ParametersOf parameters_of) {
    std::vector<std::vector<at::Tensor>> copies;
    for (const int number : numbers) {
      copies.push_back(parameters_of(*stages.by_number()[static_cast<std::size_t>(number)]));
    }
    for (std::size_t i = 1; i < copies.size(); ++i) add_gradients(copies[0], copies[i]);
    for (std::size_t i = 1; i < copies.size(); ++i) copy_gradients(copies[0], copies[i]);
  }
  static void add_gradients(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i].grad().add_(from[i].grad());
  }
  static void copy_gradients(const std::vector<at::Tensor>& from, const std::vector<at::Tensor>& to) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i].grad().copy_(from[i].grad());
  }
};

Reference::Reference(const Schedule& schedule, const TrainOptions& options)
    : parts_(std::make_unique<Parts>(schedule, options)) {}

Reference::~Reference() = default;

double Reference::compute_gradients(int step) {
  const Schedule& schedule = parts_->schedule;
  parts_->device.use({});
  parts_->stages.begin_step(step);
  parts_->optimizer.zero_gradients();
  std::vector<double> losses;
  for (int chain = 0; chain < schedule.placement.chains(); ++chain) {
    for (std::uint32_t i = 0; i < schedule.micro_batches; ++i) losses.push_back(parts_->run(chain, i));
  }
  parts_->reduce();
  parts_->device.finish();
  return mean_loss(losses);
}

void Reference::update() {
  parts_->device.use({});
  if (parts_->options.clip > 0) {
    const double norm = parts_->global_squared_norm();
    for (const auto& parameters : parts_->stages.parameters()) clip_gradients(parameters, norm, parts_->options.clip);
  }
  parts_->optimizer.step();
  parts_->device.finish();
}

void Reference::copy_parameters(const Reference& other) {
  const c10::NoGradGuard no_gradients;
  parts_->device.use({});
  const std::vector<at::Tensor> own = parts_->stages.all_parameters();
  const std::vector<at::Tensor> theirs = other.parts_->stages.all_parameters();
  for (std::size_t i = 0; i < own.size(); ++i) own[i].copy_(theirs[i]);
  parts_->device.finish();
}

std::span<Stage* const> Reference::stages() const { return parts_->stages.by_number(); }

GradientDifference GradientDifference::between(std::span<const at::Tensor> a, std::span<const at::Tensor> b) {
  GradientDifference difference;
  double product = 0;
  double squares_a = 0;
  double squares_b = 0;
  double squares_of_difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const at::Tensor of_a = a[i].grad().to(at::kDouble);
    const at::Tensor of_b = b[i].grad().to(at::kDouble);
    if (of_a.equal(of_b)) {
      const double squares = of_a.square().sum().item<double>();
      product += squares;
      squares_a += squares;
      squares_b += squares;
      continue;
    }
    difference.bitwise_equal = false;
    const at::Tensor apart = of_a - of_b;
    difference.largest = std::max(difference.largest, apart.abs().max().item<double>());
    squares_of_difference += apart.square().sum().item<double>();
    product += (of_a * of_b).sum().item<double>();
    squares_a += of_a.square().sum().item<double>();
    squares_b += of_b.square().sum().item<double>();
  }
  if (difference.bitwise_equal) return difference;
  difference.cosine = 1 - 2 * product / (squares_a + squares_b);
  difference.relative_l2 = std::sqrt(squares_of_difference / squares_b);
  return difference;
}

void GradientDifference::add(const GradientDifference& other) {
  // A NaN is worse than any number.
  if (!(other.largest <= largest)) largest = other.largest;
  if (!(other.cosine <= cosine)) cosine = other.cosine;
  if (!(other.relative_l2 <= relative_l2)) relative_l2 = other.relative_l2;
  bitwise_equal = bitwise_equal && other.bitwise_equal;
}

Tolerance Tolerance::of(const ModelShape& shape, bool on_host) {
  Tolerance tolerance;
  const double layers = std::accumulate(shape.layers.begin(), shape.layers.end(), 0.0);
  tolerance.losses_bitwise = on_host;
  switch (shape.precision) {
    case Precision::float64:
      tolerance.gradients_bitwise = on_host;
      tolerance.cosine = 1e-13;
      tolerance.loss = 1e-9;
      break;
    case Precision::float32:
      (on_host ? tolerance.cosine : tolerance.relative_l2) = on_host ? 1e-6 : 1e-5;
      tolerance.loss = 1e-3;
      break;
    case Precision::bfloat16:
      tolerance.gradients_bitwise = on_host;
      tolerance.relative_l2 = 1e-2;
      tolerance.rounding = (shape.model == "moe" ? 1e-1 : 1e-2) * std::sqrt(std::max(1.0, layers));
      tolerance.loss = 1e-2;
      break;
  }
  return tolerance;
}

namespace {

std::string limits_text(const CheckReport& report) {
  const Tolerance& tolerance = report.tolerance;
  if (tolerance.gradients_bitwise && report.same_order) return "gradients must be bitwise equal";
  if (tolerance.cosine > 0) return fmt::format("1 - cosine must be below {:.3g}", tolerance.cosine);
  return fmt::format("a relative L2 of {:.3g} is allowed", tolerance.relative_l2);
}

std::string difference_text(const GradientDifference& difference) {
  return fmt::format("by up to {:.3g}, 1 - cosine {:.3g}, relative L2 {:.3g}", difference.largest, difference.cosine,
                     difference.relative_l2);
}

}  // namespace

std::string to_text(const CheckReport& report) {
  std::string text = fmt::format(
      "check      {}: losses {}, gradients {}\n", report.passed() ? "passed" : "failed",
      report.losses_bitwise_equal ? "bitwise equal" : fmt::format("differ by up to {:.3g}", report.max_loss_difference),
      report.gradients.bitwise_equal ? "bitwise equal" : "differ " + difference_text(report.gradients));
  text += fmt::format("           {}: {}", to_text(report.precision), limits_text(report));
  if (report.from_float32) {
    text += fmt::format("; from float32 they differ by a relative L2 of {:.3g}, and {:.3g} is allowed",
                        report.from_float32->relative_l2, report.tolerance.rounding);
  }
  text += "\n";
  if (report.gradients.bitwise_equal) return text;
  for (std::size_t stage = 0; stage < report.per_stage.size(); ++stage) {
    const GradientDifference& of_stage = report.per_stage[stage];
    if (of_stage.bitwise_equal) continue;
    text += fmt::format("           stage {}: differs {}\n", stage, difference_text(of_stage));
  }
  return text;
}

Check::Check(World& world, const Schedule& schedule, const TrainOptions& options)
    : world_(world), placement_(schedule.placement), reference_(schedule, options) {
  set_up_arithmetic();
  const std::size_t stages = schedule.placement.rank_of.size();
  report_.precision = options.shape.precision;
  report_.tolerance = Tolerance::of(options.shape, options.hardware == nullptr);
  report_.per_stage.resize(stages);
  report_.same_order = adds_in_order(schedule);
  if (report_.tolerance.rounding == 0) return;
  options_of_float32_ = in_float32(options);
  float32_.emplace(schedule, *options_of_float32_);
  report_.from_float32.emplace().bitwise_equal = false;
  report_.per_stage_from_float32.resize(stages);
}

void Check::on_gradients(int step, std::span<Stage* const> stages) {
  reference_loss_ = reference_.compute_gradients(step);
  const std::vector<GradientDifference> found = differences(stages, reference_);
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    check_gradients(step, static_cast<int>(stage), found[stage]);
    report_.per_stage[stage].add(found[stage]);
    report_.gradients.add(found[stage]);
  }
  if (float32_) check_rounding(step, stages);
  reference_.update();
}

void Check::check_rounding(int step, std::span<Stage* const> stages) {
  float32_->copy_parameters(reference_);
  (void)float32_->compute_gradients(step);
  const std::vector<GradientDifference> found = differences(stages, *float32_);
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    report_.per_stage_from_float32[stage].add(found[stage]);
    report_.from_float32->add(found[stage]);
    if (found[stage].relative_l2 <= report_.tolerance.rounding) continue;
    fail(fmt::format(
        "step {}: the gradients of stage {} differ from those in float32 by a relative L2 of {:.3g}; {:.3g} "
        "is allowed (the narrower a model, the more it may be; try --hidden 64)",
        step, stage, found[stage].relative_l2, report_.tolerance.rounding));
  }
}

std::vector<GradientDifference> Check::differences(std::span<Stage* const> stages, const Reference& reference) const {
  std::vector<GradientDifference> found(stages.size());
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    if (stages[stage] == nullptr) continue;
    found[stage] = GradientDifference::between(stages[stage]->parameters(), reference.stages()[stage]->parameters());
  }
  exchange(found);
  return found;
}

// Of the stages of other processes, from these.
void Check::exchange(std::vector<GradientDifference>& differences) const {
  Packer packer;
  for (const GradientDifference& own : differences) packer.put(own);
  gather(world_, "the check of the gradients", packer.take(), [&](std::size_t process, Unpacker& part) {
    for (std::size_t stage = 0; stage < differences.size(); ++stage) {
      const auto theirs = part.get<GradientDifference>();
      const int holder = world_.process_of(placement_.rank_of[stage], placement_.ranks);
      if (holder == static_cast<int>(process)) differences[stage] = theirs;
    }
  });
}

void Check::on_step(const StepReport& step) {
  const double difference = std::abs(step.loss - reference_loss_);
  const bool equal = step.loss == reference_loss_;
  report_.losses_bitwise_equal = report_.losses_bitwise_equal && equal;
  report_.max_loss_difference = std::max(report_.max_loss_difference, difference);
  const bool must_be_equal = report_.tolerance.losses_bitwise && gradients_were_equal_;
  const double allowed = must_be_equal ? 0 : report_.tolerance.loss * std::abs(reference_loss_);
  if (!(difference <= allowed)) {
    fail(fmt::format("step {}: the loss is {}, and without a pipeline {}", step.step, step.loss, reference_loss_));
  }
  gradients_were_equal_ = report_.gradients.bitwise_equal;
  ++report_.steps;
}

void Check::check_gradients(int step, int stage, const GradientDifference& difference) {
  if (difference.bitwise_equal) return;
  const Tolerance& tolerance = report_.tolerance;
  const bool must_be_equal = tolerance.gradients_bitwise && report_.same_order && gradients_were_equal_;
  const bool is_near = (tolerance.cosine == 0 || difference.cosine < tolerance.cosine) &&
                       (tolerance.relative_l2 == 0 || difference.relative_l2 <= tolerance.relative_l2);
  if (!must_be_equal && is_near) return;
  fail(
      fmt::format("step {}: the gradients of stage {} differ from those without a pipeline by up to {:.3g} (1 - cosine "
                  "is {:.3g}, the relative L2 {:.3g}{})",
                  step, stage, difference.largest, difference.cosine, difference.relative_l2,
                  must_be_equal ? "; they are added in the same order, and should be equal" : ""));
}

void Check::fail(const std::string& what) {
  if (report_.failure.empty()) report_.failure = what;
}

}  // namespace dualpipe
