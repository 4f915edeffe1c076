#include "dualpipe/exec/stage/segment.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::stage {

// Collects the gradients of the inputs. Were these leaves, which collect their gradients themselves, each would live as
// long as the graph, also where the graph needs nothing of it but its gradient.
struct Segment::InputGradients final : torch::autograd::Node {
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    found = std::move(gradients);
    return {};
  }

  std::vector<std::optional<std::size_t>> number;  // by input of the segment: which of the node's inputs it is
  Tensors found;
};

Tensors Segment::forward(const Tensors& inputs, const Function& function, OfInputs of_inputs) {
  const bool with_graph = c10::GradMode::is_enabled();
  if (with_graph) input_gradients_ = std::shared_ptr<InputGradients>(new InputGradients, torch::autograd::deleteNode);
  Tensors detached;
  for (const at::Tensor& input : inputs) {
    at::Tensor& own = detached.emplace_back(input.defined() ? input.detach() : input);
    if (!with_graph) continue;
    std::optional<std::size_t>& number = input_gradients_->number.emplace_back();
    if (of_inputs == OfInputs::unwanted || !own.defined() || !own.is_floating_point()) continue;
    number = input_gradients_->num_inputs();
    torch::autograd::create_gradient_edge(own, input_gradients_);
  }
  Tensors outputs = function(detached);
  roots_.clear();
  for (at::Tensor& output : outputs) {
    const bool has_gradient = with_graph && output.defined() && output.requires_grad();
    if (with_graph)
      roots_.push_back(has_gradient ? torch::autograd::impl::gradient_edge(output) : torch::autograd::Edge());
    if (output.defined()) output = output.detach();
  }
  return outputs;
}

namespace {

// LibTorch itself would broadcast one that is not, or convert it.
void check_is_like_output(const at::Tensor& gradient, const torch::autograd::Edge& root) {
  const torch::autograd::InputMetadata& output = root.function->input_metadata(root.input_nr);
  if (output.is_same_shape(gradient) && gradient.dtype() == output.dtype()) return;
  throw InputError(c10::str("a gradient is ", gradient.dtype().name(), gradient.sizes(), ", and its activation ",
                            output.dtype().name(), output.shape_as_dim_vector(),
                            "; a gradient has the shape and type of its activation"));
}

}  // namespace

Tensors Segment::backward(const Tensors& gradients, Unreached unreached) {
  if (gradients.size() != roots_.size()) {
    throw InputError(
        fmt::format("a forward made {} tensors, and its backward got gradients of {}: there must be one "
                    "for each, undefined where there is none",
                    roots_.size(), gradients.size()));
  }
  torch::autograd::edge_list roots;
  Tensors given;
  for (std::size_t i = 0; i < roots_.size(); ++i) {
    if (!roots_[i].is_valid() || !gradients[i].defined()) continue;
    check_is_like_output(gradients[i], roots_[i]);
    roots.push_back(std::move(roots_[i]));
    given.push_back(gradients[i]);
  }
  roots_.clear();
  if (!roots.empty()) {
    torch::autograd::Engine::get_default_engine().execute(roots, given, /*keep_graph=*/false, /*create_graph=*/false,
                                                          /*accumulate_grad=*/true);
  }
  return take_input_gradients(unreached);
}

Tensors Segment::take_input_gradients(Unreached unreached) {
  roots_.clear();
  const std::shared_ptr<InputGradients> input_gradients = std::move(input_gradients_);
  const bool reaches_any = std::ranges::any_of(input_gradients->found, &at::Tensor::defined);
  Tensors result;
  for (const std::optional<std::size_t>& number : input_gradients->number) {
    at::Tensor& gradient = result.emplace_back();
    if (!number) continue;
    if (reaches_any) gradient = std::move(input_gradients->found[*number]);
    if (gradient.defined()) {
      gradient = gradient.contiguous();
    } else if (!reaches_any || unreached == Unreached::zeros) {
      const torch::autograd::InputMetadata& input = input_gradients->input_metadata(*number);
      gradient = at::zeros_symint(input.shape_as_dim_vector(), input.options());
    }
  }
  return result;
}

Tensors Segment::loss_gradients(double scale) const {
  Tensors gradients(roots_.size());
  if (roots_.empty() || !roots_.front().is_valid()) return gradients;
  const torch::autograd::Edge& root = roots_.front();
  const torch::autograd::InputMetadata& loss = root.function->input_metadata(root.input_nr);
  gradients.front() = at::full_symint(loss.shape_as_dim_vector(), scale, loss.options());
  return gradients;
}

}  // namespace dualpipe::detail::stage
