// A GPT: token and position embeddings in the first stage; pre-norm blocks of causal attention and an MLP; the final
// norm, the head and the cross-entropy in the last stage. The head has a weight of its own, or is tied: its weight is
// the token embedding's, of which the first and the last stage then hold a copy each.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <fmt/format.h>

#include <optional>

#include "exec/stage/autograd_stage.h"
#include "exec/stage/layers.h"
#include "exec/stage/models.h"
#include "exec/stage/recompute.h"
#include "sim/schedule/error.h"

namespace dualpipe {
namespace {

// The random streams of what is no block; blocks have their numbers.
constexpr std::uint64_t embedding_stream = ~std::uint64_t{0};
constexpr std::uint64_t head_stream = embedding_stream - 1;
constexpr double linear_gain = 1;

// [batch, sequence, 3 * hidden] to [batch, sequence, hidden].
at::Tensor attention(const at::Tensor& query_key_value, std::int64_t head_count) {
  const std::int64_t batch = query_key_value.size(0);
  const std::int64_t sequence = query_key_value.size(1);
  const std::int64_t hidden = query_key_value.size(2) / 3;
  const at::Tensor heads =
      query_key_value.view({batch, sequence, 3, head_count, hidden / head_count}).permute({2, 0, 3, 1, 4});
  constexpr bool is_causal = true;
  const at::Tensor mixed =
      at::scaled_dot_product_attention(heads[0], heads[1], heads[2], std::nullopt, /*dropout_p=*/0.0, is_causal);
  return mixed.transpose(1, 2).reshape({batch, sequence, hidden});
}

class Block {
 public:
  Block(Random random, const ModelShape& shape, const LayerOptions& options)
      : heads_(shape.heads),
        recomputes_attention_(shape.recompute == Recompute::attention),
        attention_norm_(shape.norm, shape.hidden, options),
        query_key_value_(random, shape.hidden, 3 * shape.hidden, Linear::Bias::yes, linear_gain, options),
        projection_(random, shape.hidden, shape.hidden, Linear::Bias::yes, linear_gain, options),
        mlp_norm_(shape.norm, shape.hidden, options),
        up_(random, shape.hidden, 4 * shape.hidden, Linear::Bias::yes, linear_gain, options),
        down_(random, 4 * shape.hidden, shape.hidden, Linear::Bias::yes, linear_gain, options) {}

  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const {
    const at::Tensor x = input + projection_(mixed(query_key_value_(attention_norm_(input))));
    return x + down_(at::gelu(up_(mlp_norm_(x))));
  }

  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    attention_norm_.append_parameters(name + ".attention_norm", all);
    query_key_value_.append_parameters(name + ".query_key_value", all);
    projection_.append_parameters(name + ".projection", all);
    mlp_norm_.append_parameters(name + ".mlp_norm", all);
    up_.append_parameters(name + ".up", all);
    down_.append_parameters(name + ".down", all);
  }

 private:
  [[nodiscard]] at::Tensor mixed(const at::Tensor& query_key_value) const {
    const auto mix = [heads = heads_](const at::Tensor& x) { return attention(x, heads); };
    return recomputes_attention_ ? recomputed(query_key_value, mix) : mix(query_key_value);
  }

  std::int64_t heads_;
  bool recomputes_attention_;
  Norm attention_norm_;
  Linear query_key_value_;
  Linear projection_;
  Norm mlp_norm_;
  Linear up_;
  Linear down_;
};

struct Embeddings {
  Embeddings(Random random, const ModelShape& shape, const LayerOptions& options)
      : tokens(random, shape.vocabulary, shape.hidden, options),
        positions(random, shape.sequence, shape.hidden, options),
        every_position(at::arange(shape.sequence, at::TensorOptions(options.device))) {}

  Embedding tokens;
  Embedding positions;
  at::Tensor every_position;
};

struct Head {
  // `tied`: the weight; undefined: one of its own.
  Head(const ModelShape& shape, const at::Tensor& tied, const LayerOptions& options)
      : norm(shape.norm, shape.hidden, options),
        logits(tied.defined() ? Linear(tied, options) : own_logits(Random(shape.seed, head_stream), shape, options)) {}

  static Linear own_logits(Random random, const ModelShape& shape, const LayerOptions& options) {
    return {random, shape.hidden, shape.vocabulary, Linear::Bias::no, linear_gain, options};
  }

  Norm norm;
  Linear logits;
};

class GptStage final : public AutogradStage {
 public:
  GptStage(const ModelShape& shape, int stage, const Feed& feed, const Device& device)
      : AutogradStage(shape.loss_scale, shape.recompute), feed_(feed), first_block_(layers_before(shape, stage)) {
    const LayerOptions options = {dtype(shape), device.where(), &weight_gradients(), activation_dtype(shape),
                                  &held_by_layers()};
    if (is_first(stage)) embeddings_.emplace(Random(shape.seed, embedding_stream), shape, options);
    for (int i = 0; i < shape.layers[static_cast<std::size_t>(stage)]; ++i) {
      blocks_.emplace_back(Random(shape.seed, static_cast<std::uint64_t>(first_block_ + i)), shape, options);
    }
    if (shape.tied && embeddings_) tied_ = embeddings_->tokens.weight();
    if (!is_last(shape, stage)) return;
    if (shape.tied && !embeddings_) {  // the same numbers as in the first stage
      Random random(shape.seed, embedding_stream);
      tied_ = Embedding(random, shape.vocabulary, shape.hidden, options).weight();
    }
    head_.emplace(shape, tied_, options);
  }

  [[nodiscard]] std::vector<NamedTensor> named_parameters() override {
    std::vector<NamedTensor> all;
    if (embeddings_) {
      embeddings_->tokens.append_parameters("tokens", all);
      embeddings_->positions.append_parameters("positions", all);
    }
    std::int64_t number = first_block_;
    for (const Block& block : blocks_) block.append_parameters(fmt::format("blocks.{}", number++), all);
    if (head_) {
      head_->norm.append_parameters("head.norm", all);
      const bool is_the_embedding = embeddings_ && tied_.defined();
      if (!is_the_embedding) head_->logits.append_parameters(tied_.defined() ? "tokens" : "head.logits", all);
    }
    return all;
  }

  [[nodiscard]] std::vector<at::Tensor> tied_parameters() override {
    return tied_.defined() ? std::vector{tied_} : std::vector<at::Tensor>();
  }

 private:
  at::Tensor compute(std::uint32_t micro_batch, const at::Tensor& input) override {
    const std::int64_t sample = feed_.first_micro_batch + micro_batch;
    at::Tensor x = input;
    if (embeddings_) {
      x = embeddings_->tokens(feed_.data->input(feed_.step, sample)) +
          embeddings_->positions(embeddings_->every_position);
    }
    for (const Block& block : blocks_) x = block(x);
    if (!head_) return x;
    const at::Tensor logits = for_loss(head_->logits(head_->norm(x)));
    return at::cross_entropy_loss(logits.flatten(0, 1), feed_.data->target(feed_.step, sample).flatten());
  }

  const Feed& feed_;
  std::int64_t first_block_;
  std::optional<Embeddings> embeddings_;
  std::vector<Block> blocks_;
  std::optional<Head> head_;
  at::Tensor tied_;  // in the first and last stage of a tied model
};

// Most tokens follow from the one before by a fixed rule, one in eight is drawn: something that can be learnt.
class TokenData final : public Data {
 public:
  TokenData(const ModelShape& shape, std::uint64_t seed)
      : seed_(seed), batch_(shape.batch), sequence_(shape.sequence), vocabulary_(shape.vocabulary) {}

  at::Tensor input(std::int64_t step, std::int64_t micro_batch) override {
    return tokens(step, micro_batch).slice(1, 0, sequence_).contiguous();
  }
  at::Tensor target(std::int64_t step, std::int64_t micro_batch) override {
    return tokens(step, micro_batch).slice(1, 1).contiguous();
  }

 private:
  // [batch, sequence + 1].
  [[nodiscard]] at::Tensor tokens(std::int64_t step, std::int64_t micro_batch) const {
    Random random(seed_, data_stream(step, micro_batch));
    at::Tensor result = at::empty({batch_, sequence_ + 1}, at::kLong);
    std::int64_t* const values = result.mutable_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < result.numel(); ++i) {
      const bool is_drawn = i % (sequence_ + 1) == 0 || random.next() % 8 == 0;
      values[i] = is_drawn ? static_cast<std::int64_t>(random.next() % static_cast<std::uint64_t>(vocabulary_))
                           : (5 * values[i - 1] + 1) % vocabulary_;
    }
    return result;
  }

  std::uint64_t seed_;
  std::int64_t batch_;
  std::int64_t sequence_;
  std::int64_t vocabulary_;
};

}  // namespace

std::unique_ptr<Stage> make_gpt(const ModelShape& shape, int stage, const Feed& feed, Device& device) {
  if (shape.hidden % shape.heads != 0) {
    throw InputError(
        fmt::format("gpt: a hidden size of {} cannot be shared by {} heads; make it a multiple of the heads",
                    shape.hidden, shape.heads));
  }
  return std::make_unique<GptStage>(shape, stage, feed, device);
}

std::unique_ptr<Data> gpt_data(const ModelShape& shape, std::uint64_t seed) {
  return std::make_unique<TokenData>(shape, seed);
}

}  // namespace dualpipe
