#include "dualpipe/sim/options/estimate_options.h"

#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"

namespace dualpipe {
namespace {

std::int64_t size_given(std::string_view option, const std::string& text) {
  return value_of(option, text, [](std::string_view digits) { return parse_integer(digits, 1, 1'000'000'000); });
}
std::int64_t size_given(std::string_view option, const std::string& text, std::int64_t otherwise) {
  return text.empty() ? otherwise : size_given(option, text);
}

// What nobody says of a GPT is as in GPT-2, of others as in Llama.
void set_style(TransformerShape& model, bool is_gpt, std::int64_t sequence) {
  model.name = is_gpt ? "gpt" : "llama";
  if (!is_gpt) return;
  model.gated = false;
  model.layer_norm = model.query_key_value_bias = model.output_bias = model.mlp_bias = model.dropout = true;
  model.tied_embeddings = true;
  model.positions = sequence;
}

}  // namespace

TransformerShape EstimateOptions::model(std::int64_t sequence_length) const {
  const std::pair<const char*, const std::string*> sizes[] = {
      {"--layers", &layers},         {"--hidden", &hidden},
      {"--heads", &heads},           {"--kv-heads", &key_value_heads},
      {"--head-size", &head_size},   {"--intermediate", &intermediate},
      {"--vocabulary", &vocabulary}, {"--style", &style}};
  if (!config.empty()) {
    for (const auto& [name, value] : sizes) {
      if (!value->empty()) throw UsageError(std::string("--config excludes ") + name);
    }
    return load_model_config(config);
  }
  if (layers.empty() || hidden.empty() || heads.empty()) {
    throw InputError("an estimate needs the model: give --config config.json, or --layers, --hidden and --heads");
  }
  TransformerShape model;
  const bool is_gpt = style == "gpt";
  set_style(model, is_gpt, sequence_length);
  model.layers = size_given("--layers", layers);
  model.hidden = size_given("--hidden", hidden);
  model.heads = size_given("--heads", heads);
  model.key_value_heads = size_given("--kv-heads", key_value_heads, model.heads);
  if (head_size.empty() && model.hidden % model.heads != 0) {
    throw InputError("--heads: they do not divide --hidden; give the --head-size");
  }
  model.head_size = size_given("--head-size", head_size, model.hidden / model.heads);
  // Llama's: two thirds of 4h, rounded up to a multiple of 256.
  const std::int64_t usual = is_gpt ? 4 * model.hidden : (8 * model.hidden / 3 + 255) / 256 * 256;
  model.intermediate = size_given("--intermediate", intermediate, usual);
  model.vocabulary = size_given("--vocabulary", vocabulary, is_gpt ? 50'257 : 128'256);
  return model;
}

EstimateRequest EstimateOptions::request() const {
  EstimateRequest request;
  if (sequence.empty()) throw InputError("an estimate needs the tokens of a sequence: give --sequence");
  request.sequence = size_given("--sequence", sequence);
  request.model = model(request.sequence);
  request.micro_batch = size_given("--microbatch", micro_batch, 1);
  request.tensor = static_cast<int>(size_given("--tensor-parallel", tensor, 1));
  request.context = static_cast<int>(size_given("--context-parallel", context, 1));
  request.expert = static_cast<int>(size_given("--expert-parallel", expert, 1));
  request.data = static_cast<int>(size_given("--data-parallel", data, 1));
  request.gpu = gpu;
  request.precision = dtype == "fp8"    ? MatmulPrecision::fp8
                      : dtype == "fp16" ? MatmulPrecision::fp16
                                        : MatmulPrecision::bf16;
  request.flash_attention = attention == "flash";
  request.recompute = recompute == "full";
  if (!mfu.empty()) {
    for (const auto& [name, value] :
         {std::pair("--matmul-efficiency", &matmul_efficiency), {"--memory-efficiency", &memory_efficiency}}) {
      if (!value->empty()) throw UsageError(name, "it does nothing with --mfu; leave one of them out");
    }
    request.mfu = value_of("--mfu", mfu, parse_real);
  }
  if (!matmul_efficiency.empty()) {
    request.matmul_efficiency = value_of("--matmul-efficiency", matmul_efficiency, parse_real);
  }
  if (!memory_efficiency.empty()) {
    request.memory_efficiency = value_of("--memory-efficiency", memory_efficiency, parse_real);
  }
  return request;
}

}  // namespace dualpipe
