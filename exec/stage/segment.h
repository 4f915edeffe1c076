// A piece of a stage's forward with an autograd graph of its own: what goes in and out is detached.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe::detail::stage {

// Holds, from its forward to its backward, what the graph needs of its inputs and outputs, and no more.
class Segment {
 public:
  using Function = std::function<Tensors(const Tensors& inputs)>;

  // Whether anybody wants the gradients of the inputs.
  enum class OfInputs : std::uint8_t { wanted, unwanted };

  // The outputs of `function`. While gradients are on it leaves a graph. Inputs and outputs may be undefined, and only
  // those of floating point have gradients.
  [[nodiscard]] Tensors forward(const Tensors& inputs, const Function& function, OfInputs of_inputs = OfInputs::wanted);

  // What an input gets on which no output depends: zeros, or nothing.
  enum class Unreached : std::uint8_t { zeros, undefined };

  // Frees the graph. `gradients`: one for each output; where undefined, nothing depends on the output. Returns one for
  // each input, undefined where it can have none. Where no output depends on any input, each gets zeros, so that
  // whoever made the inputs has something to go on with. Throws InputError where there is another number of gradients
  // than of outputs, or where one has another shape or type than its output.
  [[nodiscard]] Tensors backward(const Tensors& gradients, Unreached unreached = Unreached::zeros);
  // What backward() returns, after somebody else has run the backward from what `function` returned.
  [[nodiscard]] Tensors take_input_gradients(Unreached unreached);

  // What backward() takes where the first output is the loss: `scale` for it, and nothing for the others.
  [[nodiscard]] Tensors loss_gradients(double scale) const;

 private:
  struct InputGradients;
  std::shared_ptr<InputGradients> input_gradients_;  // where the backward ends, after a forward with gradients
  std::vector<torch::autograd::Edge> roots_;         // where it starts, by output
};

}  // namespace dualpipe::detail::stage
