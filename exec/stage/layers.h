// The layers that the models are made of: parameters, drawn from a generator, and the function. Private to the models.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "exec/stage/deferred.h"
#include "exec/stage/model.h"
#include "exec/stage/random.h"
#include "exec/stage/stage.h"

namespace dualpipe {

// What a model's layers share.
struct LayerOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  WeightGradients* gradients = nullptr;  // must outlive the layers
};

// Values in [-bound, bound), drawn in order; rounded to the type. On the host.
[[nodiscard]] at::Tensor uniform(Random& random, at::IntArrayRef sizes, double bound, at::ScalarType dtype);

class Linear {
 public:
  enum class Bias : std::uint8_t { no, yes };
  // Weights are drawn from [-gain / sqrt(inputs), gain / sqrt(inputs)), and so is the bias.
  Linear(Random& random, std::int64_t inputs, std::int64_t outputs, Bias bias, double gain,
         const LayerOptions& options);
  // Of a weight that another layer has, too, and without bias.
  Linear(at::Tensor weight, const LayerOptions& options) : weight_(std::move(weight)), gradients_(options.gradients) {}
  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const;
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const;

 private:
  at::Tensor weight_;
  at::Tensor bias_;  // may be undefined
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
  WeightGradients* gradients_;
};

// A LayerNorm, or an RMSNorm, which has no bias.
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

}  // namespace dualpipe
