#include "dualpipe/exec/stage/autograd_stage.h"

#include <c10/core/GradMode.h>

#include <cassert>
#include <utility>

namespace dualpipe::detail::stage {

Tensors AutogradStage::forward(std::uint32_t micro_batch, Tensors inputs) {
  const bool with_gradients = c10::GradMode::is_enabled();
  const c10::AutoGradMode with_graph(with_gradients && !recomputes_);
  Kept kept;
  Tensors outputs = run(micro_batch, inputs, kept.segment);
  if (recomputes_) kept.inputs = std::move(inputs);
  if (with_gradients) held_.put(micro_batch, Awaited::backward, std::move(kept));
  return outputs;
}

Tensors AutogradStage::backward(std::uint32_t micro_batch, Tensors gradients) {
  return differentiate(take_segment(micro_batch), std::move(gradients));
}

Tensors AutogradStage::backward_input(std::uint32_t micro_batch, Tensors gradients) {
  Segment segment = take_segment(micro_batch);
  Kept kept;
  Tensors input_gradients;
  {
    const DeferWeightGradients defer(weight_gradients_, kept.weight_gradients);
    input_gradients = differentiate(std::move(segment), std::move(gradients));
  }
  held_.put(micro_batch, Awaited::weight_gradient, std::move(kept));
  return input_gradients;
}

void AutogradStage::backward_weight(std::uint32_t micro_batch) {
  const c10::NoGradGuard no_gradients;
  Kept kept = held_.take(micro_batch, Awaited::weight_gradient);
  run_all(kept.weight_gradients);
}

Tensors AutogradStage::forward_by(std::uint32_t micro_batch, const Tensors& inputs, const Segment::Function& function) {
  assert(!recomputes_);
  Kept kept;
  Tensors outputs = kept.segment.forward(inputs, function, of_inputs_);
  if (c10::GradMode::is_enabled()) held_.put(micro_batch, Awaited::backward, std::move(kept));
  return outputs;
}

Tensors AutogradStage::take_input_gradients(std::uint32_t micro_batch) {
  return take_segment(micro_batch).take_input_gradients(Segment::Unreached::undefined);
}

Tensors AutogradStage::run(std::uint32_t micro_batch, const Tensors& inputs, Segment& segment) {
  return segment.forward(
      inputs, [&](const Tensors& own) { return compute(micro_batch, own); }, of_inputs_);
}

Segment AutogradStage::take_segment(std::uint32_t micro_batch) {
  Kept kept = held_.take(micro_batch, Awaited::backward);
  if (recomputes_) {
    const c10::AutoGradMode with_graph(true);
    static_cast<void>(run(micro_batch, kept.inputs, kept.segment));
  }
  return std::move(kept.segment);
}

Tensors AutogradStage::differentiate(Segment segment, Tensors gradients) const {
  if (gradients.empty()) gradients = segment.loss_gradients(loss_scale_);
  return segment.backward(gradients, Segment::Unreached::undefined);
}

}  // namespace dualpipe::detail::stage
