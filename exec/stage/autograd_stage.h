// A stage whose backward is autograd's. A model derives from it and writes down its forward alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dualpipe/exec/stage/deferred.h"
#include "dualpipe/exec/stage/held.h"
#include "dualpipe/exec/stage/recompute.h"
#include "dualpipe/exec/stage/segment.h"
#include "dualpipe/exec/stage/stage.h"

namespace dualpipe::detail::stage {

// What it holds of a micro-batch: from F to B or I, the autograd graph and the inputs (not the outputs, unless the
// graph needs them), or, if it recomputes in full, the inputs alone; from I to W, what the deferred weight gradients
// need.
//
// I defers the weight gradients of layers made with `deferred::`. Those of parameters used in any other way are
// computed in I, and W does nothing for them: correct, but I is then longer and W shorter than they could be. In a
// first stage, whose input needs no gradient, I computes the gradients that lead down to the first parameters.
class AutogradStage : public Stage {
 public:
  [[nodiscard]] Tensors forward(std::uint32_t micro_batch, Tensors inputs) final;
  [[nodiscard]] Tensors backward(std::uint32_t micro_batch, Tensors gradients) final;
  [[nodiscard]] Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) final;
  void backward_weight(std::uint32_t micro_batch) final;
  [[nodiscard]] Bytes working_bytes() const final { return working_bytes_; }

 protected:
  // The gradient of the last stage's output, the loss, is `loss_scale`. `recompute`: `full` is done here; `attention`
  // is up to the model.
  explicit AutogradStage(double loss_scale, Recompute recompute = Recompute::none)
      : loss_scale_(loss_scale), recomputes_(recompute == Recompute::full) {}

  // The outputs for the next stage, or the loss; as Stage::forward() has them. Called twice for a micro-batch whose
  // forward is recomputed, and must then do the same again.
  [[nodiscard]] virtual Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) = 0;

  // For the layers.
  [[nodiscard]] WeightGradients& weight_gradients() { return weight_gradients_; }
  [[nodiscard]] Bytes& held_by_layers() { return working_bytes_; }

 private:
  struct Kept {
    Tensors inputs;  // if it recomputes
    Segment segment;
    std::vector<WeightGradient> weight_gradients;
  };
  Tensors run(std::uint32_t micro_batch, const Tensors& inputs, Segment& segment);
  Segment take_segment(std::uint32_t micro_batch);
  [[nodiscard]] Tensors differentiate(Segment segment, Tensors gradients) const;

  WeightGradients weight_gradients_;
  Bytes working_bytes_ = 0;
  Held<Kept> held_;
  double loss_scale_;
  bool recomputes_;
};

}  // namespace dualpipe::detail::stage
