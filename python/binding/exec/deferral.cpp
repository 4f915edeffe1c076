// Layers of modules that know nothing of it, computed by functions whose weight gradients can wait
// (exec/stage/deferred.h).
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <optional>

#include "dualpipe/exec/stage/deferred.h"
#include "python/binding/exec/stage.h"
#include "python/binding/exec/tensor.h"

namespace dualpipe::python {
namespace {

namespace nb = nanobind;
namespace deferred = detail::stage::deferred;
using detail::stage::WeightGradients;

using Result = std::optional<at::Tensor>;
using Bias = const std::optional<at::Tensor>&;

bool has_hooks(const at::Tensor& parameter) {
  if (!torch::autograd::impl::hooks(parameter).empty()) return true;
  const auto accumulator = torch::autograd::impl::try_get_grad_accumulator(parameter);
  return torch::autograd::impl::post_acc_grad_hooks(parameter) != nullptr ||
         (accumulator && (!accumulator->pre_hooks().empty() || !accumulator->post_hooks().empty()));
}

// Where autograd does no more with the gradient than add it to .grad. A hook would miss it.
bool can_wait(const at::Tensor& parameter) {
  return parameter.is_leaf() && parameter.layout() == at::kStrided && !has_hooks(parameter);
}

// Who takes the weight gradient of these parameters; null: nobody.
WeightGradients* taker(const at::Tensor& weight, Bias bias = {}) {
  PythonStage* const stage = PythonStage::current();
  if (stage == nullptr || !c10::GradMode::is_enabled()) return nullptr;
  const bool wants = weight.requires_grad() || (bias && bias->requires_grad());
  return wants && can_wait(weight) && (!bias || can_wait(*bias)) ? &stage->weight_gradients() : nullptr;
}

// What torch.autocast makes of a layer's input and parameters; as they are where it is off.
struct Cast {
  at::Tensor input;
  deferred::LinearCopies copies;
};
Cast cast(const at::Tensor& input, const at::Tensor& weight, Bias bias) {
  Cast result = {input, {weight, bias.value_or(at::Tensor())}};
  const at::DeviceType device = input.device().type();
  if (!at::autocast::is_autocast_enabled(device)) return result;
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  result.input = at::autocast::cached_cast(type, input, device);
  result.copies.weight = at::autocast::cached_cast(type, weight, device).detach();
  if (bias) result.copies.bias = at::autocast::cached_cast(type, *bias, device).detach();
  return result;
}

Result linear(const at::Tensor& input, const at::Tensor& weight, Bias bias) {
  WeightGradients* const gradients = taker(weight, bias);
  if (gradients == nullptr || weight.dim() != 2 || input.dim() < 2) return {};
  const auto [own, copies] = cast(input, weight, bias);
  return deferred::linear(*gradients, own, weight, bias.value_or(at::Tensor()), copies);
}

Result addmm(const at::Tensor& bias, const at::Tensor& input, const at::Tensor& weight) {
  WeightGradients* const gradients = taker(weight, bias);
  if (gradients == nullptr || !weight.is_contiguous() || !input.is_contiguous()) return {};
  const auto [own, copies] = cast(input, weight, bias);
  return deferred::addmm(*gradients, bias, own, weight, copies);
}

// A number is that of all dimensions.
std::vector<std::int64_t> per_dimension(std::vector<std::int64_t> values, const at::Tensor& weight) {
  if (values.size() == 1) values.resize(static_cast<std::size_t>(weight.dim() - 2), values.front());
  return values;
}

Result convolution(const at::Tensor& input, const at::Tensor& weight, Bias bias, std::vector<std::int64_t> stride,
                   std::vector<std::int64_t> padding, std::vector<std::int64_t> dilation, std::int64_t groups) {
  WeightGradients* const gradients = taker(weight, bias);
  if (gradients == nullptr || input.dim() != weight.dim()) return {};
  const auto [own, copies] = cast(input, weight, bias);
  const deferred::Convolution form = {per_dimension(std::move(stride), weight),
                                      per_dimension(std::move(padding), weight),
                                      per_dimension(std::move(dilation), weight), groups};
  return deferred::convolution(*gradients, own, weight, bias.value_or(at::Tensor()), form, copies);
}

Result embedding(const at::Tensor& indices, const at::Tensor& weight, std::int64_t padding_index) {
  WeightGradients* const gradients = taker(weight);
  if (gradients == nullptr) return {};
  return deferred::embedding(*gradients, weight, indices, padding_index);
}

// Under autocast norms have types of their own.
bool is_plain(const at::Tensor& input, const at::Tensor& weight) {
  return !at::autocast::is_autocast_enabled(input.device().type()) && input.scalar_type() == weight.scalar_type();
}

Result layer_norm(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, double epsilon) {
  WeightGradients* const gradients = taker(weight, bias);
  if (gradients == nullptr || !is_plain(input, weight)) return {};
  return deferred::layer_norm(*gradients, input, weight, bias, epsilon);
}

Result rms_norm(const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  WeightGradients* const gradients = taker(weight);
  const bool has_type = weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble;
  if (gradients == nullptr || !is_plain(input, weight) || weight.dim() != 1 || !has_type) return {};
  return deferred::rms_norm(*gradients, input, weight, epsilon);
}

bool defer(nb::object function) {
  PythonStage* const stage = PythonStage::current();
  if (stage == nullptr || !stage->weight_gradients().deferred()) return false;
  stage->weight_gradients().add([shared = Shared(std::move(function))] {
    const nb::gil_scoped_acquire gil;
    try {
      shared.get()();
    } catch (nb::python_error& error) {
      error.restore();
      throw PythonError();
    }
  });
  return true;
}

// Layers run without the GIL, as those of torch do.
template <typename... Arguments>
auto without_gil(Result (*layer)(Arguments...)) {
  return [layer](Arguments... arguments) {
    try {
      const nb::gil_scoped_release released;
      return layer(std::forward<Arguments>(arguments)...);
    } catch (python_error& error) {  // of a hook for saved tensors, which activation checkpointing ends by one
      if (PyErr_Occurred() == nullptr) error.restore();
      throw nb::python_error();
    }
  };
}

}  // namespace

void bind_deferral(nb::module_& module) {
  module.def("defer", &defer, nb::arg("function"));
  module.def("linear", without_gil(&linear), nb::arg("input"), nb::arg("weight"), nb::arg("bias").none());
  module.def("addmm", without_gil(&addmm), nb::arg("bias"), nb::arg("input"), nb::arg("weight"));
  module.def("convolution", without_gil(&convolution), nb::arg("input"), nb::arg("weight"), nb::arg("bias").none(),
             nb::arg("stride"), nb::arg("padding"), nb::arg("dilation"), nb::arg("groups"));
  module.def("embedding", without_gil(&embedding), nb::arg("indices"), nb::arg("weight"), nb::arg("padding_index"));
  module.def("layer_norm", without_gil(&layer_norm), nb::arg("input"), nb::arg("weight"), nb::arg("bias"),
             nb::arg("epsilon"));
  module.def("rms_norm", without_gil(&rms_norm), nb::arg("input"), nb::arg("weight"), nb::arg("epsilon"));
}

}  // namespace dualpipe::python
