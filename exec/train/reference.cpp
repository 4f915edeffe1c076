#include "exec/train/reference.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "exec/train/checkpoint.h"
#include "exec/train/optimizer.h"
#include "exec/train/stage_set.h"
#include "exec/transport/pack.h"

namespace dualpipe {
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

// How far losses may be apart once gradients that only agree within their tolerance have gone into the parameters.
double loss_tolerance(bool float64) { return float64 ? 1e-9 : 1e-3; }
double cosine_tolerance(bool float64) { return float64 ? 1e-13 : 1e-6; }

}  // namespace

struct Reference::Parts {
  Parts(const Schedule& s, const TrainOptions& o)
      : schedule(s),
        options(o),
        stages(s, without_recomputation(o), all_stages(s.placement)),
        optimizer(o, stages.all_parameters()) {
    if (o.resume.empty()) return;
    const Checkpoint checkpoint(s, o);
    checkpoint.check_complete(checkpoint.load(stages, optimizer));
  }

  const Schedule& schedule;
  const TrainOptions& options;
  StageSet stages;
  Optimizer optimizer;

  double run(int chain, std::uint32_t micro_batch) {
    const auto begin = static_cast<std::size_t>(chain);
    const auto in_chain = stages.by_number().subspan(
        schedule.placement.chain_begin[begin],
        static_cast<std::size_t>(schedule.placement.chain_begin[begin + 1] - schedule.placement.chain_begin[begin]));
    at::Tensor output;
    for (Stage* const stage : in_chain) output = stage->forward(micro_batch, output);
    const double loss = output.item<double>();
    at::Tensor gradient;
    for (auto stage = in_chain.rbegin(); stage != in_chain.rend(); ++stage) {
      gradient = (*stage)->backward(micro_batch, gradient);
    }
    return loss;
  }

  // Every copy of a parameter gets the sum of the gradients of all, added in the order of the stages.
  void reduce() {
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
  parts_->stages.begin_step(step);
  parts_->optimizer.zero_gradients();
  std::vector<double> losses;
  for (int chain = 0; chain < schedule.placement.chains(); ++chain) {
    for (std::uint32_t i = 0; i < schedule.micro_batches; ++i) losses.push_back(parts_->run(chain, i));
  }
  parts_->reduce();
  return mean_loss(losses);
}

void Reference::update() {
  if (parts_->options.clip > 0) {
    const double norm = parts_->global_squared_norm();
    for (const auto& parameters : parts_->stages.parameters()) clip_gradients(parameters, norm, parts_->options.clip);
  }
  parts_->optimizer.step();
}

std::span<Stage* const> Reference::stages() const { return parts_->stages.by_number(); }

GradientDifference GradientDifference::between(std::span<const at::Tensor> a, std::span<const at::Tensor> b) {
  GradientDifference difference;
  double product = 0;
  double squares_a = 0;
  double squares_b = 0;
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
    difference.largest = std::max(difference.largest, (of_a - of_b).abs().max().item<double>());
    product += (of_a * of_b).sum().item<double>();
    squares_a += of_a.square().sum().item<double>();
    squares_b += of_b.square().sum().item<double>();
  }
  if (!difference.bitwise_equal) difference.cosine = 1 - 2 * product / (squares_a + squares_b);
  return difference;
}

void GradientDifference::add(const GradientDifference& other) {
  // A NaN is worse than any number.
  if (!(other.largest <= largest)) largest = other.largest;
  if (!(other.cosine <= cosine)) cosine = other.cosine;
  bitwise_equal = bitwise_equal && other.bitwise_equal;
}

std::string to_text(const CheckReport& report) {
  std::string text = fmt::format(
      "check      {}: losses {}, gradients {}\n", report.passed() ? "passed" : "failed",
      report.losses_bitwise_equal ? "bitwise equal" : fmt::format("differ by up to {:.3g}", report.max_loss_difference),
      report.gradients.bitwise_equal ? "bitwise equal"
                                     : fmt::format("differ by up to {:.3g}, 1 - cosine {:.3g}",
                                                   report.gradients.largest, report.gradients.cosine));
  if (report.gradients.bitwise_equal) return text;
  for (std::size_t stage = 0; stage < report.per_stage.size(); ++stage) {
    const GradientDifference& of_stage = report.per_stage[stage];
    if (of_stage.bitwise_equal) continue;
    text += fmt::format("           stage {}: differs by up to {:.3g}, 1 - cosine {:.3g}\n", stage, of_stage.largest,
                        of_stage.cosine);
  }
  return text;
}

Check::Check(World& world, const Schedule& schedule, const TrainOptions& options)
    : world_(world), placement_(schedule.placement), float64_(options.shape.float64), reference_(schedule, options) {
  report_.per_stage.resize(schedule.placement.rank_of.size());
  report_.same_order = adds_in_order(schedule);
}

void Check::on_gradients(int step, std::span<Stage* const> stages) {
  reference_loss_ = reference_.compute_gradients(step);
  std::vector<GradientDifference> differences(stages.size());
  compare(stages, differences);
  exchange(differences);
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    check_gradients(step, static_cast<int>(stage), differences[stage]);
    report_.per_stage[stage].add(differences[stage]);
    report_.gradients.add(differences[stage]);
  }
  reference_.update();
}

void Check::compare(std::span<Stage* const> stages, std::vector<GradientDifference>& differences) const {
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    if (stages[stage] == nullptr) continue;
    differences[stage] =
        GradientDifference::between(stages[stage]->parameters(), reference_.stages()[stage]->parameters());
  }
}

// Of the stages of other processes, from these.
void Check::exchange(std::vector<GradientDifference>& differences) const {
  Packer packer;
  packer.put(differences);
  const auto parts = world_.all_gather("the check of the gradients", packer.take());
  for (int process = 0; process < world_.processes(); ++process) {
    Unpacker part(parts[static_cast<std::size_t>(process)]);
    const auto theirs = part.get<std::vector<GradientDifference>>();
    for (std::size_t stage = 0; stage < differences.size(); ++stage) {
      const int holder = world_.process_of(placement_.rank_of[stage], placement_.ranks);
      if (holder == process) differences[stage] = theirs[stage];
    }
  }
}

void Check::on_step(const StepReport& step) {
  const double difference = std::abs(step.loss - reference_loss_);
  const bool equal = step.loss == reference_loss_;
  report_.losses_bitwise_equal = report_.losses_bitwise_equal && equal;
  report_.max_loss_difference = std::max(report_.max_loss_difference, difference);
  const double allowed = gradients_were_equal_ ? 0 : loss_tolerance(float64_) * std::abs(reference_loss_);
  if (!(difference <= allowed)) {
    fail(fmt::format("step {}: the loss is {}, and without a pipeline {}", step.step, step.loss, reference_loss_));
  }
  gradients_were_equal_ = report_.gradients.bitwise_equal;
  ++report_.steps;
}

void Check::check_gradients(int step, int stage, const GradientDifference& difference) {
  if (difference.bitwise_equal) return;
  const bool must_be_equal = float64_ && report_.same_order && gradients_were_equal_;
  if (!must_be_equal && difference.cosine < cosine_tolerance(float64_)) return;
  fail(
      fmt::format("step {}: the gradients of stage {} differ from those without a pipeline by up to {:.3g} (1 - cosine "
                  "is {:.3g}{})",
                  step, stage, difference.largest, difference.cosine,
                  must_be_equal ? "; they are added in the same order, and should be equal" : ""));
}

void Check::fail(const std::string& what) {
  if (report_.failure.empty()) report_.failure = what;
}

}  // namespace dualpipe
