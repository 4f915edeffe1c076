#include "exec/stage/autograd_stage.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <cassert>
#include <utility>

namespace dualpipe {

at::Tensor AutogradStage::forward(std::uint32_t micro_batch, at::Tensor input) {
  const bool with_gradients = c10::GradMode::is_enabled();
  const c10::AutoGradMode with_graph(with_gradients && !recomputes_);
  Held held{std::move(input), {}, {}};
  const at::Tensor output = run(micro_batch, held);
  // Not std::map::emplace: a step that was broken off may have left something behind.
  if (with_gradients) held_.insert_or_assign(micro_batch, std::move(held));
  return output.detach();
}

at::Tensor AutogradStage::backward(std::uint32_t micro_batch, at::Tensor gradient) {
  Held held = take_with_graph(micro_batch);
  return differentiate(held, std::move(gradient));
}

at::Tensor AutogradStage::backward_input(std::uint32_t micro_batch, at::Tensor gradient) {
  Held held = take_with_graph(micro_batch);
  std::vector<WeightGradient> kept;
  at::Tensor input_gradient;
  {
    const DeferWeightGradients defer(weight_gradients_, kept);
    input_gradient = differentiate(held, std::move(gradient));
  }
  held_.emplace(micro_batch, Held{{}, {}, std::move(kept)});
  return input_gradient;
}

void AutogradStage::backward_weight(std::uint32_t micro_batch) {
  const c10::NoGradGuard no_gradients;
  Held held = take(micro_batch);
  for (WeightGradient& gradient : held.weight_gradients) {
    gradient();
    gradient = nullptr;  // what it held is free before the next one allocates
  }
}

// The forward. While gradients are on it leaves a graph.
at::Tensor AutogradStage::run(std::uint32_t micro_batch, Held& held) {
  const bool with_graph = c10::GradMode::is_enabled();
  if (held.input.defined()) held.input = held.input.detach().set_requires_grad(with_graph);
  at::Tensor output = compute(micro_batch, held.input);
  if (with_graph) held.root = torch::autograd::impl::gradient_edge(output);
  return output;
}

AutogradStage::Held AutogradStage::take_with_graph(std::uint32_t micro_batch) {
  Held held = take(micro_batch);
  if (recomputes_) {
    const c10::AutoGradMode with_graph(true);
    static_cast<void>(run(micro_batch, held));
  }
  return held;
}

AutogradStage::Held AutogradStage::take(std::uint32_t micro_batch) {
  const auto node = held_.extract(micro_batch);
  assert(!node.empty() && "validate() has seen that each backward comes after its forward");
  return std::move(node.mapped());
}

// Runs the backward, and with it frees the graph. Returns the gradient of the input.
at::Tensor AutogradStage::differentiate(Held& held, at::Tensor gradient) const {
  if (const torch::autograd::Edge root = std::exchange(held.root, {}); root.is_valid()) {
    if (!gradient.defined()) {
      gradient = at::full({}, loss_scale_, root.function->input_metadata(root.input_nr).options());
    }
    torch::autograd::Engine::get_default_engine().execute({root}, {std::move(gradient)}, /*keep_graph=*/false,
                                                          /*create_graph=*/false, /*accumulate_grad=*/true);
  }
  if (!held.input.defined()) return {};
  at::Tensor input_gradient = std::exchange(held.input.mutable_grad(), {});
  return input_gradient.defined() ? input_gradient : at::zeros_like(held.input);
}

}  // namespace dualpipe
