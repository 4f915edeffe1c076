#include "exec/stage/layers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstddef>
#include <span>

namespace dualpipe {

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

Linear::Linear(Random& random, std::int64_t inputs, std::int64_t outputs, Bias bias, double gain,
               const LayerOptions& options)
    : gradients_(options.gradients) {
  const double bound = gain / std::sqrt(static_cast<double>(inputs));
  weight_ = parameter(uniform(random, {outputs, inputs}, bound, options.dtype), options);
  if (bias == Bias::yes) bias_ = parameter(uniform(random, {outputs}, bound, options.dtype), options);
}

at::Tensor Linear::operator()(const at::Tensor& input) const {
  return deferred::linear(*gradients_, input, weight_, bias_);
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
}

at::Tensor BatchedLinear::operator()(const at::Tensor& input) const {
  return deferred::batched_linear(*gradients_, input, weight_);
}

Embedding::Embedding(Random& random, std::int64_t rows, std::int64_t columns, const LayerOptions& options)
    : gradients_(options.gradients) {
  const double bound = 0.02 * std::sqrt(3.0);  // GPT-2's standard deviation
  weight_ = parameter(uniform(random, {rows, columns}, bound, options.dtype), options);
}

at::Tensor Embedding::operator()(const at::Tensor& indices) const {
  return deferred::embedding(*gradients_, weight_, indices);
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

}  // namespace dualpipe
