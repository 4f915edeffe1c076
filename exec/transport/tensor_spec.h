// The shape and type of a tensor, by which memory for it can be made. Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe::detail::transport {

// Shape and type; of a tensor that is undefined no sizes, and Undefined.
struct TensorSpec {
  std::vector<std::int64_t> sizes{};
  at::ScalarType type = at::ScalarType::Undefined;

  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};
using TensorSpecs = std::vector<TensorSpec>;  // of the tensors of a message, in their order

[[nodiscard]] TensorSpec spec_of(const at::Tensor& tensor);
[[nodiscard]] TensorSpecs specs_of(std::span<const at::Tensor> tensors);
[[nodiscard]] bool are_like(std::span<const at::Tensor> tensors, const TensorSpecs& specs);

// A tensor of this shape and type, whose content is still to be written.
[[nodiscard]] at::Tensor empty_of(const TensorSpec& spec, at::Device where = at::kCPU);
// How many bytes its content has. Throws std::runtime_error, which shows the spec, where no tensor can have it.
[[nodiscard]] std::uint64_t content_bytes(const TensorSpec& spec);

[[nodiscard]] std::string to_text(const TensorSpec& spec);             // "Float[2,3]"
[[nodiscard]] std::string to_text(std::span<const TensorSpec> specs);  // "Float[2,3] Float[3]"; "nothing"

}  // namespace dualpipe::detail::transport
