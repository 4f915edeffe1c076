// Stages that compute nothing, so that a run takes the time that it costs to run a Program and to move its messages.
// Private to exec.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "dualpipe/exec/stage/stage.h"

namespace dualpipe::detail::model {

// Its outputs and gradients are made once, when the stage is.
class EmptyStage : public Stage {
 public:
  // Each output and gradient is `message`, except that the last stage of a chain gives a scalar, and the first one no
  // gradient.
  EmptyStage(const at::Tensor& message, bool is_first, bool is_last);

  // What comes in makes room for what goes out: no memory is asked for.
  Tensors forward(std::uint32_t /*micro_batch*/, Tensors inputs) override {
    inputs = outputs_;
    return inputs;
  }
  Tensors backward(std::uint32_t /*micro_batch*/, Tensors gradients) override {
    gradients = input_gradients_;
    return gradients;
  }
  Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) override {
    return backward(micro_batch, std::move(gradients));
  }
  void backward_weight(std::uint32_t /*micro_batch*/) override {}
  std::vector<NamedTensor> named_parameters() override { return {}; }

 protected:
  [[nodiscard]] const Tensors& outputs() const { return outputs_; }
  [[nodiscard]] const Tensors& input_gradients() const { return input_gradients_; }

 private:
  Tensors outputs_;
  Tensors input_gradients_;
};

}  // namespace dualpipe::detail::model
