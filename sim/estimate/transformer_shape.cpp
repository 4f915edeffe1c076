#include "dualpipe/sim/estimate/transformer_shape.h"

#include <fmt/format.h>

#include <initializer_list>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

constexpr std::int64_t size_max = 1'000'000'000;

void add_attention(const TransformerShape& m, std::vector<Linear>& linears) {
  const bool bias = m.query_key_value_bias;
  const std::int64_t queries = m.heads * m.query_size();
  if (!m.is_latent()) {
    linears.push_back({.name = "Q", .in = m.hidden, .out = queries, .has_bias = bias});
    linears.push_back({.name = "K and V",
                       .in = m.hidden,
                       .out = 2 * m.key_value_heads * m.head_size,
                       .has_bias = bias,
                       .shares_input = true});
  } else {
    if (m.query_rank == 0) {
      linears.push_back({.name = "Q", .in = m.hidden, .out = queries, .has_bias = bias});
    } else {
      linears.push_back(
          {.name = "Q down", .in = m.hidden, .out = m.query_rank, .has_bias = bias, .is_replicated = true});
    }
    linears.push_back({.name = "KV down",
                       .in = m.hidden,
                       .out = m.key_value_rank + m.position_size,
                       .has_bias = bias,
                       .shares_input = true,
                       .is_replicated = true});
    if (m.query_rank > 0) linears.push_back({.name = "Q up", .in = m.query_rank, .out = queries});
    linears.push_back({.name = "KV up", .in = m.key_value_rank, .out = m.heads * (m.no_position_size + m.value_size)});
  }
  linears.push_back({.name = "output", .in = m.heads * m.size_of_value(), .out = m.hidden, .has_bias = m.output_bias});
}

// `like`: how many there are, and how many a token goes through.
void add_mlp(const TransformerShape& m, std::int64_t intermediate, const Linear& like, std::vector<Linear>& linears) {
  Linear up = like;
  up.name += "up";
  up.in = m.hidden;
  up.out = intermediate;
  up.has_bias = m.mlp_bias;
  if (m.gated) {
    linears.push_back(up);
    linears.back().name = like.name + "gate";
    up.shares_input = true;
  }
  linears.push_back(up);
  Linear down = up;
  down.name = like.name + "down";
  down.shares_input = false;
  std::swap(down.in, down.out);
  linears.push_back(down);
}

std::int64_t norm(const TransformerShape& m, std::int64_t size) { return m.layer_norm ? 2 * size : size; }

}  // namespace

std::vector<Linear> linears_of(const TransformerShape& model, bool has_experts) {
  std::vector<Linear> linears;
  add_attention(model, linears);
  if (!has_experts) {
    add_mlp(model, model.intermediate, {}, linears);
    return linears;
  }
  linears.push_back({.name = "router", .in = model.hidden, .out = model.experts, .is_replicated = true});
  const Linear expert{
      .name = "expert ", .per_token = model.experts_per_token, .count = model.experts, .is_expert = true};
  add_mlp(model, model.expert_intermediate, expert, linears);
  if (model.shared_intermediate > 0)
    add_mlp(model, model.shared_intermediate, {.name = "shared ", .shares_input = true}, linears);
  return linears;
}

ParameterCount parameters_of_layer(const TransformerShape& model, bool has_experts) {
  ParameterCount count;
  for (const Linear& each : linears_of(model, has_experts)) {
    (each.is_expert ? count.expert : each.is_replicated ? count.replicated : count.dense) += each.parameters();
  }
  count.replicated += 2 * norm(model, model.hidden);
  if (model.query_key_norm) count.replicated += 2 * model.head_size;
  if (model.is_latent()) count.replicated += model.query_rank + model.key_value_rank;
  if (has_experts && model.router_bias) count.replicated += model.experts;
  return count;
}

ParameterCount parameters_of_embedding(const TransformerShape& model) {
  return {model.vocabulary * model.hidden, 0, model.positions * model.hidden};
}

ParameterCount parameters_of_head(const TransformerShape& model) {
  return {model.vocabulary * model.hidden, 0, norm(model, model.hidden)};
}

std::int64_t parameters_of(const TransformerShape& model) {
  std::int64_t count = parameters_of_embedding(model).total() + parameters_of_head(model).total();
  if (model.tied_embeddings) count -= model.vocabulary * model.hidden;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    count += parameters_of_layer(model, model.has_experts(layer)).total();
  }
  return count;
}

std::int64_t active_parameters_of(const TransformerShape& model) {
  std::int64_t idle = 0;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    if (!model.has_experts(layer)) continue;
    for (const Linear& each : linears_of(model, true)) {
      idle += each.parameters() / each.count * (each.count - each.per_token);
    }
  }
  return parameters_of(model) - idle;
}

void check(const TransformerShape& model) {
  const auto check_size = [&](std::string_view name, std::int64_t size, std::int64_t least = 1) {
    if (size >= least && size <= size_max) return;
    throw InputError(fmt::format("the model: {} is {}; it must be from {} to {}", name, size, least, size_max));
  };
  check_size("layers", model.layers);
  check_size("hidden", model.hidden);
  check_size("heads", model.heads);
  check_size("vocabulary", model.vocabulary);
  check_size("positions", model.positions, 0);
  if (model.layers > 10'000) throw InputError("the model: more than 10000 layers");
  if (model.is_latent()) {
    check_size("no_position_size", model.no_position_size);
    check_size("position_size", model.position_size);
    check_size("value_size", model.value_size);
    check_size("query_rank", model.query_rank, 0);
  } else {
    check_size("head_size", model.head_size);
    check_size("key_value_heads", model.key_value_heads);
    if (model.heads % model.key_value_heads != 0) {
      throw InputError(fmt::format("the model: {} heads cannot share {} key-value heads evenly", model.heads,
                                   model.key_value_heads));
    }
  }
  if (model.experts == 0 || model.dense_layers > 0) check_size("intermediate", model.intermediate);
  check_size("experts", model.experts, 0);
  if (model.experts == 0) return;
  check_size("expert_intermediate", model.expert_intermediate);
  check_size("shared_intermediate", model.shared_intermediate, 0);
  check_size("dense_layers", model.dense_layers, 0);
  if (model.experts_per_token < 1 || model.experts_per_token > model.experts) {
    throw InputError(
        fmt::format("the model: a token goes through {} of {} experts", model.experts_per_token, model.experts));
  }
}

}  // namespace dualpipe
