// The sum of Transport::reduce(). It is added in the order of the stages, so that every transport gets the same bits.
// Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <cstddef>
#include <ranges>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/wait.h"

namespace dualpipe::detail::transport {

// `parts`: the tensors of each stage, in the order of the stages. All stages bring as many, of the same shapes and
// types.
template <std::ranges::input_range Parts>
[[nodiscard]] Tensors sums_of(Parts&& parts) {
  const c10::NoGradGuard no_grad;
  const detail::replay::ChargeToNobody guard;
  Tensors sums;
  for (const Tensors& part : parts) {
    if (sums.empty()) {
      for (const at::Tensor& each : part) sums.push_back(each.clone());
    } else {
      for (std::size_t k = 0; k < sums.size(); ++k) sums[k].add_(part[k]);
    }
  }
  return sums;
}

}  // namespace dualpipe::detail::transport
