// What the models made of transformer blocks share: the attention, the two ends of a chain, and samples. Private to the
// models.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/exec/model/layers.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/exec/model/random.h"

namespace dualpipe::detail::model {

// The gain of the linear layers' weights.
inline constexpr double linear_gain = 1;

// Throws InputError where the heads cannot share the hidden size.
void check_heads(const ModelShape& shape);

// Pre-norm causal self-attention of [batch, sequence, hidden], and the way around it: the input is added.
class Attention {
 public:
  Attention(Random& random, const ModelShape& shape, const LayerOptions& options);
  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const;
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const;

 private:
  [[nodiscard]] at::Tensor mixed(const at::Tensor& query_key_value) const;

  std::int64_t heads_;
  bool recomputes_;
  Norm norm_;
  Linear query_key_value_;
  Linear projection_;
};

// The ends of a chain, as far as a stage has them: token and position embeddings in the first stage, the final norm,
// the head and the cross-entropy in the last. The head has a weight of its own, or is tied: its weight is the token
// embedding's, of which the first and the last stage then hold a copy each. Where one stage has both ends it holds one
// weight. The gradients of the two uses are then summed over the micro-batches separately, and added up at the end: in
// the same order as with two copies, and so with the same bits.
class TransformerEnds {
 public:
  // `feed` is read at each use.
  TransformerEnds(const ModelShape& shape, int stage, const Feed& feed, const LayerOptions& options);

  // What goes into the first block of the stage: in a first stage the embedded tokens, which are the input, or, where
  // there is none, those of the feed; else the input itself.
  [[nodiscard]] at::Tensor begin(std::uint32_t micro_batch, const Tensors& inputs) const;
  // What comes out of the stage: of a last stage the loss, else `output`, its last block's.
  [[nodiscard]] at::Tensor end(std::uint32_t micro_batch, const at::Tensor& output) const;

  // Of what comes before the blocks, and after them.
  void append_first_parameters(std::vector<NamedTensor>& all) const;
  void append_last_parameters(std::vector<NamedTensor>& all) const;
  [[nodiscard]] std::vector<at::Tensor> tied_parameters() const;
  void add_up_gradients() const;

 private:
  struct Embeddings {
    Embeddings(Random random, const ModelShape& shape, const LayerOptions& options);
    Embedding tokens;
    Embedding positions;
    at::Tensor every_position;
  };
  struct Head {
    Head(const ModelShape& shape, const at::Tensor& tied, const LayerOptions& options);
    Norm norm;
    Linear logits;
  };

  const Feed& feed_;
  std::optional<Embeddings> embeddings_;
  std::optional<Head> head_;
  at::Tensor tied_;          // in the first and last stage of a tied model
  at::Tensor tied_in_head_;  // the same numbers, with a gradient of their own, in a stage that is both
};

// What a stage has: its blocks, each with the random stream of its number in the chain, and the ends.
template <typename Block>
struct TransformerLayers {
  TransformerLayers(const ModelShape& shape, int stage, const Feed& feed, const LayerOptions& options)
      : first_block(layers_before(shape, stage)), ends(shape, stage, feed, options) {
    for (int i = 0; i < shape.layers[static_cast<std::size_t>(stage)]; ++i) {
      blocks.emplace_back(Random(shape.seed, static_cast<std::uint64_t>(first_block + i)), shape, options);
    }
  }

  [[nodiscard]] std::vector<NamedTensor> named_parameters() const {
    std::vector<NamedTensor> all;
    ends.append_first_parameters(all);
    std::int64_t number = first_block;
    for (const Block& block : blocks) block.append_parameters("blocks." + std::to_string(number++), all);
    ends.append_last_parameters(all);
    return all;
  }

  std::int64_t first_block;  // its number
  TransformerEnds ends;
  std::vector<Block> blocks;
};

}  // namespace dualpipe::detail::model
