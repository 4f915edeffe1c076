#include "exec/train/optimizer.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace dualpipe {

struct Optimizer::Algorithm {
  std::unique_ptr<torch::optim::Optimizer> of_torch;
};

Optimizer::Optimizer(const TrainOptions& options, std::vector<at::Tensor> parameters)
    : parameters_(std::move(parameters)) {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad() = at::zeros_like(parameter);
  if (parameters_.empty()) return;
  algorithm_ = std::make_unique<Algorithm>();
  switch (options.optimizer) {
    case OptimizerKind::sgd:
      algorithm_->of_torch =
          std::make_unique<torch::optim::SGD>(parameters_, torch::optim::SGDOptions(options.learning_rate));
      break;
    case OptimizerKind::adamw:
      algorithm_->of_torch =
          std::make_unique<torch::optim::AdamW>(parameters_, torch::optim::AdamWOptions(options.learning_rate));
      break;
  }
}

Optimizer::~Optimizer() = default;

void Optimizer::zero_gradients() {
  if (algorithm_) algorithm_->of_torch->zero_grad(/*set_to_none=*/false);
}

void Optimizer::step() {
  if (algorithm_) algorithm_->of_torch->step();
}

bool is_first_with_weights(const Placement& placement, int stage) {
  const auto& weights = placement.weights_of;
  const auto last = weights.begin() + stage;
  return std::find(weights.begin(), last, *last) == last;
}

double squared_norm(std::span<const at::Tensor> parameters) {
  double sum = 0;
  for (const at::Tensor& parameter : parameters) {
    sum += parameter.grad().to(at::kDouble).square().sum().item<double>();
  }
  return sum;
}

void clip_gradients(std::span<const at::Tensor> parameters, double global_squared_norm, double clip) {
  constexpr double epsilon = 1e-6;
  const double scale = clip / (std::sqrt(global_squared_norm) + epsilon);
  if (!(scale < 1)) return;
  for (const at::Tensor& parameter : parameters) parameter.grad().mul_(scale);
}

}  // namespace dualpipe
