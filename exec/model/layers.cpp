#include "dualpipe/exec/model/layers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <cassert>
#include <cmath>
#include <cstddef>
#include <span>

#include "dualpipe/exec/model/models.h"

namespace dualpipe::detail::model {

namespace deferred = stage::deferred;

at::Tensor uniform(Random& random, at::IntArrayRef sizes, double bound, at::ScalarType dtype) {
  at::Tensor values = at::empty(sizes, at::kDouble);
  for (double& value : std::span(values.mutable_data_ptr<double>(), static_cast<std::size_t>(values.numel()))) {
    value = random.uniform(bound);
  }
  return values.to(dtype);
}

namespace {

at::Tensor parameter(const at::Tensor& values, const LayerOptions& options) {
  return values.to(options.device).set_requires_grad(true);
}

}  // namespace

LayerOptions layer_options(const ModelShape& shape, const Device& device, WeightGradients& gradients, Bytes& working) {
  return {dtype(shape), device.where(), &gradients, activation_dtype(shape), &working};
}

Working::Working(const at::Tensor& parameter, const LayerOptions& options) : parameter_(parameter) {
  if (parameter.scalar_type() == options.activations) return;
  assert(options.working != nullptr);
  copy_ = at::empty_like(parameter.detach(), options.activations);
  *options.working += static_cast<Bytes>(copy_.nbytes());
}

const at::Tensor& Working::current() const {
  if (!copy_.defined()) return parameter_;
  if (const auto version = parameter_._version(); copied_ != version) {
    const c10::NoGradGuard no_gradients;
    copy_.copy_(parameter_);
    copied_ = version;
  }
  return copy_;
}

at::Tensor for_loss(const at::Tensor& output) {
  return output.scalar_type() == at::kBFloat16 ? output.to(at::kFloat) : output;
}

Linear::Linear(Random& random, std::int64_t inputs, std::int64_t outputs, Bias bias, double gain,
               const LayerOptions& options)
    : gradients_(options.gradients) {
  const double bound = gain / std::sqrt(static_cast<double>(inputs));
  weight_ = parameter(uniform(random, {outputs, inputs}, bound, options.dtype), options);
  working_weight_ = Working(weight_, options);
  if (bias == Bias::no) return;
  bias_ = parameter(uniform(random, {outputs}, bound, options.dtype), options);
  working_bias_ = Working(bias_, options);
}

at::Tensor Linear::operator()(const at::Tensor& input) const {
  return deferred::linear(*gradients_, input, weight_, bias_, {working_weight_.current(), working_bias_.current()});
}

void Linear::append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
  all.push_back({name + ".weight", weight_});
  if (bias_.defined()) all.push_back({name + ".bias", bias_});
}

BatchedLinear::BatchedLinear(Random& random, std::int64_t groups, std::int64_t inputs, std::int64_t outputs,
                             double gain, const LayerOptions& options)
    : gradients_(options.gradients) {
  const double bound = gain / std::sqrt(static_cast<double>(inputs));
  weight_ = parameter(uniform(random, {groups, inputs, outputs}, bound, options.dtype), options);
  working_weight_ = Working(weight_, options);
}

at::Tensor BatchedLinear::operator()(const at::Tensor& input) const {
  return deferred::batched_linear(*gradients_, input, weight_, {working_weight_.current(), {}});
}

Embedding::Embedding(Random& random, std::int64_t rows, std::int64_t columns, const LayerOptions& options)
    : activations_(options.activations), gradients_(options.gradients) {
  const double bound = 0.02 * std::sqrt(3.0);  // GPT-2's standard deviation
  weight_ = parameter(uniform(random, {rows, columns}, bound, options.dtype), options);
}

at::Tensor Embedding::operator()(const at::Tensor& indices) const {
  return deferred::embedding(*gradients_, weight_, indices).to(activations_);
}

Norm::Norm(NormKind kind, std::int64_t size, const LayerOptions& options)
    : weight_(parameter(at::ones({size}, options.dtype), options)), gradients_(options.gradients) {
  if (kind == NormKind::layer) bias_ = parameter(at::zeros({size}, options.dtype), options);
}

at::Tensor Norm::operator()(const at::Tensor& input) const {
  constexpr double epsilon = 1e-5;
  if (!bias_.defined()) return deferred::rms_norm(*gradients_, input, weight_, epsilon);
  return deferred::layer_norm(*gradients_, input, weight_, bias_, epsilon);
}

}  // namespace dualpipe::detail::model
