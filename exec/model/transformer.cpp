#include "dualpipe/exec/model/transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include "dualpipe/exec/model/models.h"
#include "dualpipe/exec/stage/recompute.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::model {
namespace {

// The random streams of what is no block; blocks have their numbers.
constexpr std::uint64_t embedding_stream = ~std::uint64_t{0};
constexpr std::uint64_t head_stream = embedding_stream - 1;

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

Linear own_logits(Random random, const ModelShape& shape, const LayerOptions& options) {
  return {random, shape.hidden, shape.vocabulary, Linear::Bias::no, linear_gain, options};
}

}  // namespace

void check_heads(const ModelShape& shape) {
  if (shape.hidden % shape.heads == 0) return;
  throw InputError(fmt::format("{}: a hidden size of {} cannot be shared by {} heads; make it a multiple of the heads",
                               shape.model, shape.hidden, shape.heads));
}

Attention::Attention(Random& random, const ModelShape& shape, const LayerOptions& options)
    : heads_(shape.heads),
      recomputes_(shape.recompute == Recompute::attention),
      norm_(shape.norm, shape.hidden, options),
      query_key_value_(random, shape.hidden, 3 * shape.hidden, Linear::Bias::yes, linear_gain, options),
      projection_(random, shape.hidden, shape.hidden, Linear::Bias::yes, linear_gain, options) {}

at::Tensor Attention::operator()(const at::Tensor& input) const {
  return input + projection_(mixed(query_key_value_(norm_(input))));
}

at::Tensor Attention::mixed(const at::Tensor& query_key_value) const {
  const auto mix = [heads = heads_](const at::Tensor& x) { return attention(x, heads); };
  return recomputes_ ? recomputed(query_key_value, mix) : mix(query_key_value);
}

void Attention::append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
  norm_.append_parameters(name + ".attention_norm", all);
  query_key_value_.append_parameters(name + ".query_key_value", all);
  projection_.append_parameters(name + ".projection", all);
}

TransformerEnds::Embeddings::Embeddings(Random random, const ModelShape& shape, const LayerOptions& options)
    : tokens(random, shape.vocabulary, shape.hidden, options),
      positions(random, shape.sequence, shape.hidden, options),
      every_position(at::arange(shape.sequence, at::TensorOptions(options.device))) {}

// `tied`: the weight; undefined: one of its own.
TransformerEnds::Head::Head(const ModelShape& shape, const at::Tensor& tied, const LayerOptions& options)
    : norm(shape.norm, shape.hidden, options),
      logits(tied.defined() ? Linear(tied, options) : own_logits(Random(shape.seed, head_stream), shape, options)) {}

TransformerEnds::TransformerEnds(const ModelShape& shape, int stage, const Feed& feed, const LayerOptions& options)
    : feed_(feed) {
  if (is_first(stage)) embeddings_.emplace(Random(shape.seed, embedding_stream), shape, options);
  if (shape.tied && embeddings_) tied_ = embeddings_->tokens.weight();
  if (!is_last(shape, stage)) return;
  if (shape.tied && !embeddings_) {  // the same numbers as in the first stage
    Random random(shape.seed, embedding_stream);
    tied_ = Embedding(random, shape.vocabulary, shape.hidden, options).weight();
  } else if (shape.tied) {
    tied_in_head_ = tied_.detach().set_requires_grad(true);
    tied_in_head_.mutable_grad() = at::zeros_like(tied_in_head_);
    *options.working += static_cast<Bytes>(tied_in_head_.grad().nbytes());
  }
  head_.emplace(shape, tied_in_head_.defined() ? tied_in_head_ : tied_, options);
}

at::Tensor TransformerEnds::begin(std::uint32_t micro_batch, const Tensors& inputs) const {
  if (!embeddings_) return inputs[0];
  const at::Tensor tokens =
      inputs.empty() ? feed_.data->input(feed_.step, feed_.first_micro_batch + micro_batch) : inputs[0];
  return embeddings_->tokens(tokens) + embeddings_->positions(embeddings_->every_position);
}

at::Tensor TransformerEnds::end(std::uint32_t micro_batch, const at::Tensor& output) const {
  if (!head_) return output;
  const at::Tensor logits = for_loss(head_->logits(head_->norm(output)));
  return at::cross_entropy_loss(logits.flatten(0, 1),
                                feed_.data->target(feed_.step, feed_.first_micro_batch + micro_batch).flatten());
}

void TransformerEnds::append_first_parameters(std::vector<NamedTensor>& all) const {
  if (!embeddings_) return;
  embeddings_->tokens.append_parameters("tokens", all);
  embeddings_->positions.append_parameters("positions", all);
}

void TransformerEnds::append_last_parameters(std::vector<NamedTensor>& all) const {
  if (!head_) return;
  head_->norm.append_parameters("head.norm", all);
  const bool is_the_embedding = embeddings_ && tied_.defined();
  if (!is_the_embedding) head_->logits.append_parameters(tied_.defined() ? "tokens" : "head.logits", all);
}

std::vector<at::Tensor> TransformerEnds::tied_parameters() const {
  return tied_.defined() ? std::vector{tied_} : std::vector<at::Tensor>();
}

void TransformerEnds::add_up_gradients() const {
  if (!tied_in_head_.defined() || !tied_.grad().defined()) return;  // no backward has run
  tied_.mutable_grad().add_(tied_in_head_.grad());
  tied_in_head_.mutable_grad().zero_();
}

std::unique_ptr<Data> token_data(const ModelShape& shape, std::uint64_t seed) {
  return std::make_unique<TokenData>(shape, seed);
}

}  // namespace dualpipe::detail::model
