// Activations that are not kept for the backward but computed again, to save memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace dualpipe {

enum class Recompute : std::uint8_t {
  none,
  full,       // a stage keeps its input alone; B or I begins with its forward
  attention,  // "selective activation recomputation" (arXiv:2205.05198, section 5): an attention keeps its queries,
              // keys and values alone
};

// apply(input), of which the input alone is kept: the backward calls `apply` again. It must be a function of nothing
// but its argument: no parameter used in it gets a gradient.
[[nodiscard]] at::Tensor recomputed(const at::Tensor& input, const std::function<at::Tensor(const at::Tensor&)>& apply);

}  // namespace dualpipe
