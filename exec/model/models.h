// Every model: one file that defines these, and one line in model.cpp. Private to the models.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dualpipe/exec/model/model.h"

namespace dualpipe::detail::model {

// The stage is one of the chain; the sizes have been checked to be positive, and all else is up to the model.
using MakeStage = std::unique_ptr<Stage>(const ModelShape& shape, int stage, const Feed& feed, Device& device);
using MakeData = std::unique_ptr<Data>(const ModelShape& shape, std::uint64_t seed);

MakeStage make_mlp, make_gpt, make_moe, make_timed, make_empty;
MakeData mlp_data, token_data, no_data;

// Throws InputError: a size that is not positive, a chain without stages, …
void check(const ModelShape& shape);

[[nodiscard]] inline bool is_first(int stage) { return stage == 0; }
[[nodiscard]] inline bool is_last(const ModelShape& shape, int stage) {
  return static_cast<std::size_t>(stage) + 1 == shape.layers.size();
}

// How many layers of the chain lie before the stage: the number of its first one.
[[nodiscard]] std::int64_t layers_before(const ModelShape& shape, int stage);

// Of the parameters, their gradients, and samples that are no tokens.
[[nodiscard]] inline at::ScalarType dtype(const ModelShape& shape) {
  return shape.precision == Precision::float64 ? at::kDouble : at::kFloat;
}
// Of what goes from layer to layer.
[[nodiscard]] inline at::ScalarType activation_dtype(const ModelShape& shape) {
  return shape.precision == Precision::bfloat16 ? at::kBFloat16 : dtype(shape);
}

// The sample stream of a micro-batch of synthetic data.
[[nodiscard]] inline std::uint64_t data_stream(std::int64_t step, std::int64_t micro_batch) {
  return (static_cast<std::uint64_t>(step) << 24U) + static_cast<std::uint64_t>(micro_batch);
}

}  // namespace dualpipe::detail::model
