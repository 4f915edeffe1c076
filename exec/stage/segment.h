// A piece of a stage's forward with an autograd graph of its own: what goes in and out is detached.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <functional>
#include <memory>
#include <vector>

namespace dualpipe::detail::stage {

using Tensors = std::vector<at::Tensor>;

// Holds, from its forward to its backward, what the graph needs of its inputs and outputs, and no more.
class Segment {
 public:
  using Function = std::function<Tensors(const Tensors& inputs)>;

  // The outputs of `function`. While gradients are on it leaves a graph. Inputs and outputs may be undefined, and only
  // those of floating point have gradients.
  [[nodiscard]] Tensors forward(const Tensors& inputs, const Function& function);

  // Frees the graph. `gradients`: one for each output; where undefined, nothing depends on the output. Returns one for
  // each input that can have one (zeros, if no output depends on it), else undefined. Throws InputError where a
  // gradient has another shape or type than its output.
  [[nodiscard]] Tensors backward(const Tensors& gradients);

  // A gradient of the first output with this value everywhere; undefined if that depends on nothing.
  [[nodiscard]] at::Tensor filled_gradient(double value) const;

 private:
  struct Ends;
  std::shared_ptr<Ends> ends_;                // where the backward ends, after a forward with gradients
  std::vector<torch::autograd::Edge> roots_;  // where it starts, by output
};

}  // namespace dualpipe::detail::stage
