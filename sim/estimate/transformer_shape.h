// What a transformer is made of: enough to count its parameters, FLOPs and bytes exactly.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace dualpipe {

// Sizes are numbers of elements. 0 where the model has none of it.
struct TransformerShape {
  std::string name = {};  // for people: "llama"
  std::int64_t layers = 0;
  std::int64_t hidden = 0;           // h
  std::int64_t heads = 0;            // a, of queries
  std::int64_t key_value_heads = 0;  // grouped-query attention (arXiv:2305.13245): fewer than heads
  std::int64_t head_size = 0;        // d, of queries, keys and values
  std::int64_t intermediate = 0;     // f, of the dense layers' MLP
  std::int64_t vocabulary = 0;       // V
  std::int64_t positions = 0;        // learned ones; else rotary

  // Experts (arXiv:2401.04088, arXiv:2401.06066). The first `dense_layers` layers have none.
  std::int64_t experts = 0;
  std::int64_t experts_per_token = 0;
  std::int64_t expert_intermediate = 0;
  std::int64_t shared_intermediate = 0;  // of all shared experts together
  std::int64_t dense_layers = 0;

  // Multi-head latent attention (arXiv:2405.04434, section 2.1); then keys and queries have two parts, of which one is
  // rotated, and `head_size` is not used.
  std::int64_t query_rank = 0;  // 0: queries are not compressed
  std::int64_t key_value_rank = 0;
  std::int64_t no_position_size = 0;
  std::int64_t position_size = 0;
  std::int64_t value_size = 0;

  bool gated = true;                  // SwiGLU: three matrices, else two
  bool layer_norm = false;            // with a bias; else RMSNorm
  bool tied_embeddings = false;       // the head is the embedding
  bool query_key_value_bias = false;  // biases of these projections
  bool output_bias = false;           // of attention's output
  bool mlp_bias = false;
  bool query_key_norm = false;
  bool router_bias = false;  // DeepSeek-V3's, for balance (arXiv:2412.19437, section 2.1.2)
  bool dropout = false;      // trained with: masks are kept

  friend bool operator==(const TransformerShape&, const TransformerShape&) = default;

  [[nodiscard]] bool has_experts(std::int64_t layer) const { return experts > 0 && layer >= dense_layers; }
  [[nodiscard]] bool is_latent() const { return key_value_rank > 0; }
  // Of one head.
  [[nodiscard]] std::int64_t query_size() const { return is_latent() ? no_position_size + position_size : head_size; }
  [[nodiscard]] std::int64_t size_of_value() const { return is_latent() ? value_size : head_size; }
};

// A weight matrix, or several alike: `in` to `out` elements.
struct Linear {
  std::string name;
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool has_bias = false;
  bool shares_input = false;   // with one before it
  std::int64_t per_token = 1;  // how many of them a token goes through
  std::int64_t count = 1;      // how many there are
  bool is_replicated = false;  // tensor parallelism leaves it whole
  bool is_expert = false;      // expert parallelism spreads them

  [[nodiscard]] std::int64_t parameters() const { return count * (in * out + (has_bias ? out : 0)); }
};

// What a layer multiplies by, in order; without attention itself.
[[nodiscard]] std::vector<Linear> linears_of(const TransformerShape& model, bool has_experts);

// Exact, by part. Norms, and the router's bias, are those that no rank of tensor parallelism shares with others.
struct ParameterCount {
  std::int64_t dense = 0;       // split by tensor parallelism
  std::int64_t expert = 0;      // by that, and by expert parallelism
  std::int64_t replicated = 0;  // by neither

  [[nodiscard]] std::int64_t total() const { return dense + expert + replicated; }
};
[[nodiscard]] ParameterCount parameters_of_layer(const TransformerShape& model, bool has_experts);
[[nodiscard]] ParameterCount parameters_of_embedding(const TransformerShape& model);
[[nodiscard]] ParameterCount parameters_of_head(const TransformerShape& model);  // with the last norm
[[nodiscard]] std::int64_t parameters_of(const TransformerShape& model);         // of all; a tied head counts once
[[nodiscard]] std::int64_t active_parameters_of(const TransformerShape& model);  // that a token goes through

// Throws InputError that names the field: a size below 1, heads that key-value heads do not divide, …
void check(const TransformerShape& model);

// Hugging Face's config.json, of the model types gpt2, llama, mistral, qwen2, qwen3, qwen3_moe, mixtral, deepseek_v2
// and deepseek_v3. Throws InputError with the place in the file.
[[nodiscard]] TransformerShape read_model_config(std::istream& in, const std::string& source);
[[nodiscard]] TransformerShape load_model_config(const std::string& path);

}  // namespace dualpipe
