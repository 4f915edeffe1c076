// A GPT: between the ends that all transformers have, pre-norm blocks of causal attention and an MLP.
#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>

#include "dualpipe/exec/model/layers.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/exec/model/transformer.h"
#include "dualpipe/exec/stage/autograd_stage.h"

namespace dualpipe::detail::model {

using stage::AutogradStage;

namespace {

class GptBlock {
 public:
  GptBlock(Random random, const ModelShape& shape, const LayerOptions& options)
      : attention_(random, shape, options),
        norm_(shape.norm, shape.hidden, options),
        up_(random, shape.hidden, 4 * shape.hidden, Linear::Bias::yes, linear_gain, options),
        down_(random, 4 * shape.hidden, shape.hidden, Linear::Bias::yes, linear_gain, options) {}

  [[nodiscard]] at::Tensor operator()(const at::Tensor& input) const {
    const at::Tensor x = attention_(input);
    return x + down_(at::gelu(up_(norm_(x))));
  }

  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    attention_.append_parameters(name, all);
    norm_.append_parameters(name + ".mlp_norm", all);
    up_.append_parameters(name + ".up", all);
    down_.append_parameters(name + ".down", all);
  }

 private:
  Attention attention_;
  Norm norm_;
  Linear up_;
  Linear down_;
};

class GptStage final : public AutogradStage {
 public:
  GptStage(const ModelShape& shape, int stage, const Feed& feed, const Device& device)
      : AutogradStage(shape.loss_scale, shape.recompute),
        layers_(shape, stage, feed, layer_options(shape, device, weight_gradients(), held_by_layers())) {}

  [[nodiscard]] std::vector<NamedTensor> named_parameters() override { return layers_.named_parameters(); }
  [[nodiscard]] std::vector<at::Tensor> tied_parameters() override { return layers_.ends.tied_parameters(); }
  void add_up_gradients() override { layers_.ends.add_up_gradients(); }

 private:
  Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) override {
    at::Tensor x = layers_.ends.begin(micro_batch, inputs);
    for (const GptBlock& block : layers_.blocks) x = block(x);
    return {layers_.ends.end(micro_batch, x)};
  }

  TransformerLayers<GptBlock> layers_;
};

}  // namespace

std::unique_ptr<Stage> make_gpt(const ModelShape& shape, int stage, const Feed& feed, Device& device) {
  check_heads(shape);
  return std::make_unique<GptStage>(shape, stage, feed, device);
}

}  // namespace dualpipe::detail::model
