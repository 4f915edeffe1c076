#include "dualpipe/exec/stage/autograd_stage.h"

#include <c10/core/GradMode.h>

#include <cassert>
#include <utility>

namespace dualpipe {

at::Tensor AutogradStage::forward(std::uint32_t micro_batch, at::Tensor input) {
  const bool with_gradients = c10::GradMode::is_enabled();
  const c10::AutoGradMode with_graph(with_gradients && !recomputes_);
  Held held;
  at::Tensor output = run(micro_batch, input, held.segment);
  if (recomputes_) held.input = std::move(input);
  // Not std::map::emplace: a step that was broken off may have left something behind.
  if (with_gradients) held_.insert_or_assign(micro_batch, std::move(held));
  return output;
}

at::Tensor AutogradStage::backward(std::uint32_t micro_batch, at::Tensor gradient) {
  return differentiate(take_segment(micro_batch), std::move(gradient));
}

at::Tensor AutogradStage::backward_input(std::uint32_t micro_batch, at::Tensor gradient) {
  Segment segment = take_segment(micro_batch);
  Held held;
  at::Tensor input_gradient;
  {
    const DeferWeightGradients defer(weight_gradients_, held.weight_gradients);
    input_gradient = differentiate(std::move(segment), std::move(gradient));
  }
  held_.emplace(micro_batch, std::move(held));
  return input_gradient;
}

void AutogradStage::backward_weight(std::uint32_t micro_batch) {
  const c10::NoGradGuard no_gradients;
  Held held = take(micro_batch);
  run_all(held.weight_gradients);
}

at::Tensor AutogradStage::run(std::uint32_t micro_batch, const at::Tensor& input, Segment& segment) {
  const auto computed = [&](const Tensors& inputs) { return Tensors{compute(micro_batch, inputs[0])}; };
  return segment.forward({input}, computed)[0];
}

Segment AutogradStage::take_segment(std::uint32_t micro_batch) {
  Held held = take(micro_batch);
  if (recomputes_) {
    const c10::AutoGradMode with_graph(true);
    static_cast<void>(run(micro_batch, held.input, held.segment));
  }
  return std::move(held.segment);
}

AutogradStage::Held AutogradStage::take(std::uint32_t micro_batch) {
  const auto node = held_.extract(micro_batch);
  assert(!node.empty() && "validate() has seen that each backward comes after its forward");
  return std::move(node.mapped());
}

at::Tensor AutogradStage::differentiate(Segment segment, at::Tensor gradient) const {
  if (!gradient.defined()) gradient = segment.filled_gradient(loss_scale_);
  return segment.backward({std::move(gradient)})[0];
}

}  // namespace dualpipe
