#include "dualpipe/exec/stage/autograd_stage.h"

#include <c10/core/GradMode.h>

#include <utility>

namespace dualpipe::detail::stage {

at::Tensor AutogradStage::forward(std::uint32_t micro_batch, at::Tensor input) {
  const bool with_gradients = c10::GradMode::is_enabled();
  const c10::AutoGradMode with_graph(with_gradients && !recomputes_);
  Kept kept;
  at::Tensor output = run(micro_batch, input, kept.segment);
  if (recomputes_) kept.input = std::move(input);
  if (with_gradients) held_.put(micro_batch, Awaited::backward, std::move(kept));
  return output;
}

at::Tensor AutogradStage::backward(std::uint32_t micro_batch, at::Tensor gradient) {
  return differentiate(take_segment(micro_batch), std::move(gradient));
}

at::Tensor AutogradStage::backward_input(std::uint32_t micro_batch, at::Tensor gradient) {
  Segment segment = take_segment(micro_batch);
  Kept kept;
  at::Tensor input_gradient;
  {
    const DeferWeightGradients defer(weight_gradients_, kept.weight_gradients);
    input_gradient = differentiate(std::move(segment), std::move(gradient));
  }
  held_.put(micro_batch, Awaited::weight_gradient, std::move(kept));
  return input_gradient;
}

void AutogradStage::backward_weight(std::uint32_t micro_batch) {
  const c10::NoGradGuard no_gradients;
  Kept kept = held_.take(micro_batch, Awaited::weight_gradient);
  run_all(kept.weight_gradients);
}

at::Tensor AutogradStage::run(std::uint32_t micro_batch, const at::Tensor& input, Segment& segment) {
  const auto computed = [&](const Tensors& inputs) { return Tensors{compute(micro_batch, inputs[0])}; };
  return segment.forward({input}, computed)[0];
}

Segment AutogradStage::take_segment(std::uint32_t micro_batch) {
  Kept kept = held_.take(micro_batch, Awaited::backward);
  if (recomputes_) {
    const c10::AutoGradMode with_graph(true);
    static_cast<void>(run(micro_batch, kept.input, kept.segment));
  }
  return std::move(kept.segment);
}

at::Tensor AutogradStage::differentiate(Segment segment, at::Tensor gradient) const {
  if (!gradient.defined()) gradient = segment.filled_gradient(loss_scale_);
  return segment.backward({std::move(gradient)})[0];
}

}  // namespace dualpipe::detail::stage
