#include "dualpipe/exec/train/optimizer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

Optimizer::Optimizer(const TrainOptions& options, std::vector<at::Tensor> parameters)
    : kind_(options.optimizer), parameters_(std::move(parameters)) {
  if (!(options.learning_rate > 0 && options.learning_rate <= learning_rate_max)) {
    throw InputError(fmt::format("the learning rate is {}; it must be above 0, and at most {}", options.learning_rate,
                                 learning_rate_max));
  }
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad() = at::zeros_like(parameter);
  if (parameters_.empty()) return;
  switch (options.optimizer) {
    case OptimizerKind::sgd:
      algorithm_ = std::make_unique<torch::optim::SGD>(parameters_, torch::optim::SGDOptions(options.learning_rate));
      break;
    case OptimizerKind::adamw:
      algorithm_ =
          std::make_unique<torch::optim::AdamW>(parameters_, torch::optim::AdamWOptions(options.learning_rate));
      break;
  }
}

Optimizer::~Optimizer() = default;

void Optimizer::zero_gradients() {
  if (algorithm_) algorithm_->zero_grad(/*set_to_none=*/false);
}

void Optimizer::step() {
  if (!algorithm_) return;
  algorithm_->step();
  // SGD writes to what at::Tensor::data() gives, whose version is not the parameter's.
  for (const at::Tensor& parameter : parameters_) parameter.unsafeGetTensorImpl()->bump_version();
}

std::vector<std::vector<NamedTensor>> Optimizer::state() const {
  std::vector<std::vector<NamedTensor>> all(parameters_.size());
  if (!algorithm_ || kind_ != OptimizerKind::adamw) return all;
  const auto& states = algorithm_->state();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto found = states.find(parameters_[i].unsafeGetTensorImpl());
    if (found == states.end()) continue;  // before the first step
    const auto& adamw = static_cast<const torch::optim::AdamWParamState&>(*found->second);
    all[i] = {{"exp_avg", adamw.exp_avg()}, {"exp_avg_sq", adamw.exp_avg_sq()}};
  }
  return all;
}

void Optimizer::begin_at(std::int64_t steps) {
  if (!algorithm_ || kind_ != OptimizerKind::adamw) return;
  for (const at::Tensor& parameter : parameters_) {
    auto state = std::make_unique<torch::optim::AdamWParamState>();
    state->step(steps);
    state->exp_avg(at::zeros_like(parameter));
    state->exp_avg_sq(at::zeros_like(parameter));
    algorithm_->state()[parameter.unsafeGetTensorImpl()] = std::move(state);
  }
}

bool is_first_with_weights(const Placement& placement, int stage) {
  const auto& weights = placement.weights_of;
  const auto last = weights.begin() + stage;
  return std::find(weights.begin(), last, *last) == last;
}

std::vector<double> gradient_squares(std::span<const at::Tensor> parameters) {
  if (parameters.empty()) return {};
  std::vector<at::Tensor> squares;
  for (const at::Tensor& parameter : parameters) {
    squares.push_back(parameter.grad().to(at::kDouble).square().sum());
  }
  const at::Tensor all = at::stack(squares).cpu();  // one wait for a device, not one for each
  const double* const begin = all.const_data_ptr<double>();
  return {begin, begin + all.numel()};
}

double plain_sum(std::span<const double> squares) { return std::accumulate(squares.begin(), squares.end(), 0.0); }

double sum_in_any_order(std::span<const double> squares, double sum_of_all) {
  if (!std::isfinite(sum_of_all) || sum_of_all == 0) return plain_sum(squares);
  constexpr int bits = 50;  // of the sum; a double has 53, and each rounding adds up to half a unit
  const int unit = std::ilogb(sum_of_all) - bits;
  double units = 0;
  for (const double square : squares) units += std::nearbyint(std::scalbn(square, -unit));
  return std::scalbn(units, unit);
}

void clip_gradients(std::span<const at::Tensor> parameters, double global_squared_norm, double clip) {
  constexpr double epsilon = 1e-6;
  const double scale = clip / (std::sqrt(global_squared_norm) + epsilon);
  if (!(scale < 1)) return;
  for (const at::Tensor& parameter : parameters) parameter.grad().mul_(scale);
}

}  // namespace dualpipe::detail::train
