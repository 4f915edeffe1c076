// What happens to the gradients once they are there: clipping, and the optimizer's step. Private to exec/train: the
// pipeline and the reference it is checked against share it, so that they differ in nothing but the pipeline.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/schedule/placement.h"

namespace torch::optim {
class Optimizer;
}  // namespace torch::optim

namespace dualpipe::detail::train {

class Optimizer {
 public:
  // Gives every parameter a gradient, of zeros: it is there from the first step on, and memory stays level. Throws
  // InputError for a learning rate that is none.
  Optimizer(const TrainOptions& options, std::vector<at::Tensor> parameters);
  ~Optimizer();

  void zero_gradients();
  // Each parameter then has another _version().
  void step();

  // What the algorithm keeps for each parameter, in the order of the parameters: "exp_avg" and "exp_avg_sq" in AdamW,
  // nothing in SGD, and nothing before the first step. A checkpoint saves these tensors, or overwrites them.
  [[nodiscard]] std::vector<std::vector<NamedTensor>> state() const;
  // Goes on as if so many steps had been done. What state() then has is zeros, which the caller overwrites.
  void begin_at(std::int64_t steps);

 private:
  OptimizerKind kind_;
  std::vector<at::Tensor> parameters_;
  std::unique_ptr<torch::optim::Optimizer> algorithm_;  // none without parameters
};

// Whether no stage before it has the same weights: only then it counts for the global norm.
[[nodiscard]] bool is_first_with_weights(const Placement& placement, int stage);

// The terms of the square of the global norm: for each parameter, the sum of the squares of its gradient.
[[nodiscard]] std::vector<double> gradient_squares(std::span<const at::Tensor> parameters);
[[nodiscard]] double plain_sum(std::span<const double> squares);

// The sum of the terms that one rank has. Added over the ranks these sums give the same bits, whichever rank holds
// which parameter: each term is first rounded to a multiple of 2^-50 of the sum of all terms (of which only the
// magnitude counts), and then no addition rounds any more (Demmel and Nguyen, "Fast Reproducible Floating-Point
// Summation", 2013).
[[nodiscard]] double sum_in_any_order(std::span<const double> squares, double sum_of_all);

// Scales the gradients so that the global norm is at most `clip`: by clip / (norm + 1e-6), as LibTorch does.
void clip_gradients(std::span<const at::Tensor> parameters, double global_squared_norm, double clip);

}  // namespace dualpipe::detail::train
