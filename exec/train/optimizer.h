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

  // What the algorithm keeps of each parameter, in their order, from its first step on: of AdamW "exp_avg" and
  // "exp_avg_sq". To be saved, or to be overwritten by what was.
  [[nodiscard]] std::vector<std::vector<NamedTensor>> state() const;
  // As if so many steps had been done; what is kept of them is to be filled in.
  void begin_at(std::int64_t steps);

 private:
  OptimizerKind kind_;
  std::vector<at::Tensor> parameters_;
  std::unique_ptr<torch::optim::Optimizer> algorithm_;  // none without parameters
};

// A stage counts for the global norm if no stage before it has the same weights.
[[nodiscard]] bool is_first_with_weights(const Placement& placement, int stage);

// The square of the global norm has a term for each parameter: that of its gradient.
[[nodiscard]] std::vector<double> gradient_squares(std::span<const at::Tensor> parameters);
[[nodiscard]] double plain_sum(std::span<const double> squares);

// The sum of some of the terms, such that the sum of these sums has the same bits whichever rank holds which parameter.
// Each term is rounded to a unit that is 2^-50 of the sum of all, of which only the magnitude counts; after that no
// addition rounds any more (Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", 2013).
[[nodiscard]] double sum_in_any_order(std::span<const double> squares, double sum_of_all);

// Scales the gradients so that the global norm is at most `clip`: by clip / (norm + 1e-6), as LibTorch does.
void clip_gradients(std::span<const at::Tensor> parameters, double global_squared_norm, double clip);

}  // namespace dualpipe::detail::train
