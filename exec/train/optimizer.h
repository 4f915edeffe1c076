// What happens to the gradients once they are there: clipping, and the optimizer's step. Private to exec/train: the
// pipeline and the reference it is checked against share it, so that they differ in nothing but the pipeline.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "exec/train/train.h"
#include "sim/schedule/placement.h"

namespace dualpipe {

class Optimizer {
 public:
  // Gives every parameter a gradient, of zeros: it is there from the first step on, and memory stays level.
  Optimizer(const TrainOptions& options, std::vector<at::Tensor> parameters);
  ~Optimizer();

  void zero_gradients();
  void step();

 private:
  struct Algorithm;

  std::vector<at::Tensor> parameters_;
  std::unique_ptr<Algorithm> algorithm_;  // none without parameters
};

// A stage counts for the global norm if no stage before it has the same weights.
[[nodiscard]] bool is_first_with_weights(const Placement& placement, int stage);

// Of the gradients of these parameters, added in their order.
[[nodiscard]] double squared_norm(std::span<const at::Tensor> parameters);

// Scales the gradients so that the global norm is at most `clip`: by clip / (norm + 1e-6), as LibTorch does.
void clip_gradients(std::span<const at::Tensor> parameters, double global_squared_norm, double clip);

}  // namespace dualpipe
