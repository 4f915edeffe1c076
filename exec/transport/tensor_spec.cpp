#include "dualpipe/exec/transport/tensor_spec.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace dualpipe::detail::transport {

TensorSpec spec_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.sizes().vec(), tensor.scalar_type()};
}

TensorSpecs specs_of(std::span<const at::Tensor> tensors) {
  TensorSpecs specs;
  for (const at::Tensor& each : tensors) specs.push_back(spec_of(each));
  return specs;
}

bool are_like(std::span<const at::Tensor> tensors, const TensorSpecs& specs) {
  return std::ranges::equal(tensors, specs, [](const at::Tensor& tensor, const TensorSpec& spec) {
    if (!tensor.defined()) return spec == TensorSpec{};
    return tensor.scalar_type() == spec.type && std::ranges::equal(tensor.sizes(), spec.sizes);
  });
}

at::Tensor empty_of(const TensorSpec& spec, at::Device where) {
  if (spec == TensorSpec{}) return {};
  return at::empty(spec.sizes, at::TensorOptions(spec.type).device(where));
}

std::uint64_t content_bytes(const TensorSpec& spec) {
  if (spec == TensorSpec{}) return 0;
  const auto type = static_cast<int>(spec.type);
  if (type < 0 || type >= static_cast<int>(at::ScalarType::NumOptions) || spec.type == at::ScalarType::Undefined) {
    throw std::runtime_error(fmt::format("a tensor of type {}, which there is not", type));
  }
  std::uint64_t bytes = elementSize(spec.type);
  std::uint64_t bytes_max = std::numeric_limits<std::int64_t>::max();
  bool is_empty = false;
  for (const std::int64_t size : spec.sizes) {
    if (size < 0) throw std::runtime_error(fmt::format("a tensor {}", to_text(spec)));
    if (size == 0) {
      is_empty = true;
      continue;
    }
    if (static_cast<std::uint64_t>(size) > bytes_max / bytes) {
      throw std::runtime_error(fmt::format("a tensor {}", to_text(spec)));
    }
    bytes *= static_cast<std::uint64_t>(size);
  }
  return is_empty ? 0 : bytes;
}

std::string to_text(const TensorSpec& spec) {
  return fmt::format("{}[{}]", c10::toString(spec.type), fmt::join(spec.sizes, ","));
}

std::string to_text(std::span<const TensorSpec> specs) {
  if (specs.empty()) return "nothing";
  std::vector<std::string> texts;
  for (const TensorSpec& each : specs) texts.push_back(to_text(each));
  return fmt::format("{}", fmt::join(texts, " "));
}

}  // namespace dualpipe::detail::transport
