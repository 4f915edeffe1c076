// Activations that are not kept for the backward but computed again, to save memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace dualpipe {

enum class Recompute : std::uint8_t {
  none,
  // A stage keeps its input alone; B or I begins with its forward.
  full,
  // "Selective activation recomputation" (arXiv:2205.05198, section 5): an attention keeps its queries, keys and values
  // alone. The scores, which are most of what the paper saves, are never kept where LibTorch's attention is one kernel,
  // as on a CPU; it then saves a number for each query and head, the logarithm of the scores' sum.
  attention,
};

// apply(input), of which the input alone is kept: the backward calls `apply` again. It must be a function of nothing
// but its argument: no parameter used in it gets a gradient.
[[nodiscard]] at::Tensor recomputed(const at::Tensor& input, const std::function<at::Tensor(const at::Tensor&)>& apply);

}  // namespace dualpipe
