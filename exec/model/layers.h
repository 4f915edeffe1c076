// The layers that the models are made of: parameters, drawn from a generator, and the function. Private to the models.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/model/random.h"
#include "dualpipe/exec/stage/deferred.h"
#include "dualpipe/exec/stage/stage.h"

namespace dualpipe::detail::model {

using stage::WeightGradients;

// What the layers of a model have in common.
struct LayerOptions {
  at::ScalarType dtype = at::kFloat;  // of the parameters
  at::Device device = at::kCPU;
  WeightGradients* gradients = nullptr;     // must outlive the layers
  at::ScalarType activations = at::kFloat;  // of what goes from layer to layer
  Bytes* working = nullptr;                 // the layers add the bytes of their copies of parameters to it
};

// For the layers of a stage, which has these two.
[[nodiscard]] LayerOptions layer_options(const ModelShape& shape, const Device& device, WeightGradients& gradients,
                                         Bytes& working);

// For a layer that computes in the type of its parameters.
[[nodiscard]] inline LayerOptions in_full(LayerOptions options) {
  options.activations = options.dtype;
  return options;
}

// A parameter in the type that a layer computes in: the parameter itself, or a copy. The memory of the copy is
// allocated at the start. The copy is written anew when it is used after the parameter has changed
// (at::Tensor::_version()), which is once a step. (LibTorch's own SGD does not count up the version; Optimizer::step()
// does it instead.)
class Working {
 public:
  Working() = default;  // of an undefined parameter
  Working(const at::Tensor& parameter, const LayerOptions& options);
  [[nodiscard]] const at::Tensor& current() const;

 private:
  at::Tensor parameter_;
  at::Tensor copy_;                             // undefined where the parameter has the type
  mutable std::optional<std::int64_t> copied_;  // the version of the parameter
};

// A loss is computed in no less than float32.
[[nodiscard]] at::Tensor for_loss(const at::Tensor& output);

// Values in [-bound, bound), drawn in order; rounded to the type. On the host.
[[nodiscard]] at::Tensor uniform(Random& random, at::IntArrayRef sizes, double bound, at::ScalarType dtype);

class Linear {
 public:
  enum class Bias : std::uint8_t { no, yes };
  // Weights are drawn from [-gain / sqrt(inputs), gain / sqrt(inputs)), and so is the bias.
  Linear(Random& random, std::int64_t inputs, std::int64_t outputs, Bias bias, double gain,
         const LayerOptions& options);
  // Of a weight that another layer has, too, and without bias.
  Linear(const at::Tensor& weight, const LayerOptions& options)
      : weight_(weight), working_weight_(weight, options), gradients_(options.gradients) {}
  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const;
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const;

 private:
  at::Tensor weight_;
  at::Tensor bias_;  // may be undefined
  Working working_weight_;
  Working working_bias_;
  WeightGradients* gradients_;
};

// A linear layer without bias for each group of the input, [groups, rows, inputs].
class BatchedLinear {
 public:
  // Weights, [groups, inputs, outputs], are drawn as those of a Linear.
  BatchedLinear(Random& random, std::int64_t groups, std::int64_t inputs, std::int64_t outputs, double gain,
                const LayerOptions& options);
  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const;
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    all.push_back({name + ".weight", weight_});
  }

 private:
  at::Tensor weight_;
  Working working_weight_;
  WeightGradients* gradients_;
};

class Embedding {
 public:
  Embedding(Random& random, std::int64_t rows, std::int64_t columns, const LayerOptions& options);
  [[nodiscard]] at::Tensor operator()(const at::Tensor& indices) const;
  [[nodiscard]] const at::Tensor& weight() const { return weight_; }
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    all.push_back({name + ".weight", weight_});
  }

 private:
  at::Tensor weight_;
  at::ScalarType activations_;
  WeightGradients* gradients_;
};

// A LayerNorm, or an RMSNorm, which has no bias. Computed in the type of its parameters.
class Norm {
 public:
  Norm(NormKind kind, std::int64_t size, const LayerOptions& options);
  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const;
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    all.push_back({name + ".weight", weight_});
    if (bias_.defined()) all.push_back({name + ".bias", bias_});
  }

 private:
  at::Tensor weight_;
  at::Tensor bias_;  // undefined in an RMSNorm
  WeightGradients* gradients_;
};

}  // namespace dualpipe::detail::model
