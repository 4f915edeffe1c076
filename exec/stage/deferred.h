// Layers whose weight gradients can wait: I computes the gradients of the inputs and keeps, per layer, what W needs for
// those of the parameters (the layer's input and the gradient of its output).
//
// Each layer calls the kernels that plain autograd calls, with the same arguments, so the gradients have the same bits.
// One exception: a parameter used by two layers of one stage; autograd adds its two gradients to each other before it
// adds them to .grad, these layers add them one by one.
//
// Mixed precision, as by torch.autocast: a Linear computes with copies of its parameters in the type of its input, its
// gradients, too, which are then added to the parameters' in theirs. Norms compute in the type of their parameters, and
// give back the type of their input.
#pragma once

#include <ATen/core/Tensor.h>

#include <cassert>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace dualpipe::detail::stage {

// Computes parameter gradients of one layer and adds them to the parameters' .grad.
using WeightGradient = std::function<void()>;

// Each is freed as soon as it has run: what it held is there for the next one.
inline void run_all(std::vector<WeightGradient>& gradients) {
  for (WeightGradient& gradient : gradients) {
    gradient();
    gradient = nullptr;
  }
  gradients.clear();
}

// Where the layers of a stage bring their weight gradients: computed at once (B), or kept for later (I). One per stage,
// used by the stage's thread alone; it must outlive the autograd graphs that the layers have built with it.
class WeightGradients {
 public:
  WeightGradients() = default;
  WeightGradients(const WeightGradients&) = delete;
  WeightGradients& operator=(const WeightGradients&) = delete;

  [[nodiscard]] bool deferred() const { return kept_ != nullptr; }
  void add(WeightGradient gradient) {
    if (deferred()) {
      kept_->push_back(std::move(gradient));
    } else {
      gradient();
    }
  }

 private:
  friend class DeferWeightGradients;
  std::vector<WeightGradient>* kept_ = nullptr;
};

// While it lives, weight gradients are kept in a list.
class DeferWeightGradients {
 public:
  DeferWeightGradients(WeightGradients& gradients, std::vector<WeightGradient>& kept) : gradients_(gradients) {
    assert(!gradients.deferred());
    gradients_.kept_ = &kept;
  }
  ~DeferWeightGradients() { gradients_.kept_ = nullptr; }
  DeferWeightGradients(const DeferWeightGradients&) = delete;
  DeferWeightGradients& operator=(const DeferWeightGradients&) = delete;

 private:
  WeightGradients& gradients_;
};

namespace deferred {

// What a linear layer multiplies by and adds: its parameters, or copies of them in the input's type.
struct LinearCopies {
  at::Tensor weight;
  at::Tensor bias;
};

// at::linear; `bias` may be undefined.
[[nodiscard]] at::Tensor linear(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                const at::Tensor& bias, const LinearCopies& copies);
[[nodiscard]] inline at::Tensor linear(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                       const at::Tensor& bias) {
  return linear(gradients, input, weight, bias, {weight, bias});
}

// at::bmm of [batch, rows, inputs] and a weight of [batch, inputs, outputs]: a linear layer for each of the batch.
[[nodiscard]] at::Tensor batched_linear(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                        const LinearCopies& copies);
[[nodiscard]] inline at::Tensor batched_linear(WeightGradients& gradients, const at::Tensor& input,
                                               const at::Tensor& weight) {
  return batched_linear(gradients, input, weight, {weight, {}});
}

// at::addmm of a bias and two matrices, the second of which is a weight of [inputs, outputs]; both are contiguous.
[[nodiscard]] at::Tensor addmm(WeightGradients& gradients, const at::Tensor& bias, const at::Tensor& input,
                               const at::Tensor& weight, const LinearCopies& copies);

struct Convolution {
  std::vector<std::int64_t> stride;
  std::vector<std::int64_t> padding;
  std::vector<std::int64_t> dilation;
  std::int64_t groups = 1;
};
// at::convolution, not transposed; `bias` may be undefined.
[[nodiscard]] at::Tensor convolution(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                     const at::Tensor& bias, const Convolution& form, const LinearCopies& copies);

// at::embedding, with dense gradients. `padding_index`: of the row that gets none.
inline constexpr std::int64_t no_padding = -1;
[[nodiscard]] at::Tensor embedding(WeightGradients& gradients, const at::Tensor& weight, const at::Tensor& indices,
                                   std::int64_t padding_index = no_padding);

// at::layer_norm over the last dimensions, those of the weight.
[[nodiscard]] at::Tensor layer_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                    const at::Tensor& bias, double epsilon);

// at::rms_norm over the last dimension, which `weight` scales; float32 or float64.
[[nodiscard]] at::Tensor rms_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                                  double epsilon);

}  // namespace deferred
}  // namespace dualpipe::detail::stage
