#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <functional>
#include <istream>
#include <nlohmann/json.hpp>

#include "dualpipe/sim/estimate/transformer_shape.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::JsonValue;
using detail::schedule::quote;

namespace {

constexpr std::int64_t config_size_max = 1'000'000'000;

// Keys that a config may have as null, or not at all, are as the model type has them without.
class Config {
 public:
  explicit Config(JsonValue document) : document_(std::move(document)) {}

  [[nodiscard]] std::int64_t size(std::string_view key) const { return document_.at(key).integer(1, config_size_max); }
  [[nodiscard]] std::int64_t size(std::string_view key, std::int64_t otherwise) const {
    const auto value = document_.find(key);
    return value && !value->is_null() ? value->integer(0, config_size_max) : otherwise;
  }
  [[nodiscard]] bool flag(std::string_view key, bool otherwise) const {
    const auto value = document_.find(key);
    return value && !value->is_null() ? value->boolean() : otherwise;
  }
  [[nodiscard]] const JsonValue& document() const { return document_; }

 private:
  JsonValue document_;
};

TransformerShape gpt2(const Config& config) {
  TransformerShape model;
  model.layers = config.size("n_layer");
  model.hidden = config.size("n_embd");
  model.heads = model.key_value_heads = config.size("n_head");
  model.head_size = model.hidden / model.heads;
  model.intermediate = config.size("n_inner", 4 * model.hidden);
  model.vocabulary = config.size("vocab_size");
  model.positions = config.size("n_positions", 1024);
  model.gated = false;
  model.layer_norm = model.query_key_value_bias = model.output_bias = model.mlp_bias = model.dropout = true;
  model.tied_embeddings = config.flag("tie_word_embeddings", true);
  return model;
}

// What all that came after Llama have in common.
TransformerShape llama(const Config& config) {
  TransformerShape model;
  model.layers = config.size("num_hidden_layers");
  model.hidden = config.size("hidden_size");
  model.heads = config.size("num_attention_heads");
  model.key_value_heads = config.size("num_key_value_heads", model.heads);
  model.head_size = config.size("head_dim", model.hidden / model.heads);
  model.intermediate = config.size("intermediate_size");
  model.vocabulary = config.size("vocab_size");
  model.tied_embeddings = config.flag("tie_word_embeddings", false);
  model.query_key_value_bias = model.output_bias = config.flag("attention_bias", false);
  model.mlp_bias = config.flag("mlp_bias", false);
  return model;
}

TransformerShape qwen2(const Config& config) {
  TransformerShape model = llama(config);
  model.query_key_value_bias = true;
  model.output_bias = false;
  return model;
}

TransformerShape qwen3(const Config& config) {
  TransformerShape model = llama(config);
  model.query_key_norm = true;
  return model;
}

TransformerShape qwen3_moe(const Config& config) {
  TransformerShape model = qwen3(config);
  model.experts = config.size("num_experts");
  model.experts_per_token = config.size("num_experts_per_tok");
  model.expert_intermediate = config.size("moe_intermediate_size");
  return model;
}

TransformerShape mixtral(const Config& config) {
  TransformerShape model = llama(config);
  model.experts = config.size("num_local_experts");
  model.experts_per_token = config.size("num_experts_per_tok");
  model.expert_intermediate = model.intermediate;
  return model;
}

TransformerShape deepseek(const Config& config) {
  TransformerShape model = llama(config);
  model.head_size = 0;
  model.query_rank = config.size("q_lora_rank", 0);
  model.key_value_rank = config.size("kv_lora_rank");
  model.no_position_size = config.size("qk_nope_head_dim");
  model.position_size = config.size("qk_rope_head_dim");
  model.value_size = config.size("v_head_dim");
  model.experts = config.size("n_routed_experts");
  model.experts_per_token = config.size("num_experts_per_tok");
  model.expert_intermediate = config.size("moe_intermediate_size");
  model.shared_intermediate = config.size("n_shared_experts", 0) * model.expert_intermediate;
  model.dense_layers = config.size("first_k_dense_replace", 0);
  return model;
}

TransformerShape deepseek_v3(const Config& config) {
  TransformerShape model = deepseek(config);
  model.router_bias = true;
  return model;
}

struct ModelType {
  std::string_view name;
  TransformerShape (*read)(const Config& config);
};
constexpr std::array model_types{
    ModelType{"gpt2", gpt2},       ModelType{"llama", llama},          ModelType{"mistral", llama},
    ModelType{"qwen2", qwen2},     ModelType{"qwen3", qwen3},          ModelType{"qwen3_moe", qwen3_moe},
    ModelType{"mixtral", mixtral}, ModelType{"deepseek_v2", deepseek}, ModelType{"deepseek_v3", deepseek_v3}};

}  // namespace

TransformerShape read_model_config(std::istream& in, const std::string& source) {
  const nlohmann::json json = detail::schedule::read_json_document(in, source, {});
  const Config config(JsonValue(json, source));
  const std::string& type = config.document().at("model_type").text();
  for (const ModelType& each : model_types) {
    if (each.name != type) continue;
    TransformerShape model = each.read(config);
    model.name = type;
    try {
      check(model);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}: {}", source, error.what()));
    }
    return model;
  }
  std::vector<std::string_view> names;
  for (const ModelType& each : model_types) names.push_back(each.name);
  config.document()
      .at("model_type")
      .fail(fmt::format("{} is not known; there are {}; give --layers, --hidden and --heads instead", quote(type),
                        fmt::join(names, ", ")));
}

TransformerShape load_model_config(const std::string& path) {
  auto in = open_input_file(path);
  return read_model_config(in, path);
}

}  // namespace dualpipe
