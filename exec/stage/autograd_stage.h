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
  [[nodiscard]] Tensors forward(std::uint32_t micro_batch, Tensors inputs) override;
  [[nodiscard]] Tensors backward(std::uint32_t micro_batch, Tensors gradients) override;
  [[nodiscard]] Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) override;
  void backward_weight(std::uint32_t micro_batch) final;
  [[nodiscard]] Bytes working_bytes() const final { return working_bytes_; }

 protected:
  // The gradient of the last stage's output, the loss, is `loss_scale`. `recompute`: `full` is done here; `attention`
  // is up to the model. `of_inputs`: a first stage that is given its inputs needs no gradients of them.
  explicit AutogradStage(double loss_scale, Recompute recompute = Recompute::none,
                         Segment::OfInputs of_inputs = Segment::OfInputs::wanted)
      : loss_scale_(loss_scale), recomputes_(recompute == Recompute::full), of_inputs_(of_inputs) {}
  // Between steps.
  void set_loss_scale(double scale) { loss_scale_ = scale; }

  // The outputs for the next stage, or the loss; as Stage::forward() has them. Called twice for a micro-batch whose
  // forward is recomputed, and must then do the same again.
  [[nodiscard]] virtual Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) = 0;

  // For a model whose own function runs an F&B pair, in a stage that does not recompute: the F with this function in
  // place of compute(), and what backward() returns of a micro-batch whose backward that function has run, from what
  // compute() had returned.
  [[nodiscard]] Tensors forward_by(std::uint32_t micro_batch, const Tensors& inputs, const Segment::Function& function);
  [[nodiscard]] Tensors take_input_gradients(std::uint32_t micro_batch);

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
  Segment::OfInputs of_inputs_;
};

}  // namespace dualpipe::detail::stage
