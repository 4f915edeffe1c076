// DeepSeek's example stage (deepseek-ai/DualPipe, examples/): each layer Linear h→4h, GELU, Linear 4h→h, no bias.
// The loss is the mean squared error.
#include <ATen/ops/gelu.h>
#include <ATen/ops/mse_loss.h>
#include <fmt/format.h>

#include <cmath>

#include "dualpipe/exec/model/layers.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/exec/stage/autograd_stage.h"

namespace dualpipe::detail::model {

using stage::AutogradStage;

namespace {

struct Layer {
  Layer(Random random, std::int64_t hidden, const LayerOptions& options)
      : up(random, hidden, 4 * hidden, Linear::Bias::no, gain, options),
        down(random, 4 * hidden, hidden, Linear::Bias::no, gain, options) {}

  // Outputs about as large as the inputs, however many layers there are.
  static constexpr double gain = 2;
  Linear up;
  Linear down;
};

class MlpStage final : public AutogradStage {
 public:
  MlpStage(const ModelShape& shape, int stage, const Feed& feed, const Device& device)
      : AutogradStage(shape.loss_scale, shape.recompute),
        feed_(feed),
        is_first_(is_first(stage)),
        is_last_(is_last(shape, stage)),
        activations_(activation_dtype(shape)),
        first_layer_(layers_before(shape, stage)) {
    const LayerOptions options = layer_options(shape, device, weight_gradients(), held_by_layers());
    for (int i = 0; i < shape.layers[static_cast<std::size_t>(stage)]; ++i) {
      layers_.emplace_back(Random(shape.seed, static_cast<std::uint64_t>(first_layer_ + i)), shape.hidden, options);
    }
  }

  [[nodiscard]] std::vector<NamedTensor> named_parameters() override {
    std::vector<NamedTensor> all;
    std::int64_t number = first_layer_;
    for (const Layer& layer : layers_) {
      const std::string name = fmt::format("layers.{}", number++);
      layer.up.append_parameters(name + ".up", all);
      layer.down.append_parameters(name + ".down", all);
    }
    return all;
  }

 private:
  Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) override {
    const std::int64_t sample = feed_.first_micro_batch + micro_batch;
    at::Tensor x = inputs.empty() ? feed_.data->input(feed_.step, sample) : inputs[0];
    if (is_first_) x = x.detach().to(activations_);  // nobody wants the gradient of a sample
    for (const Layer& layer : layers_) x = layer.down(at::gelu(layer.up(x)));
    return {is_last_ ? at::mse_loss(for_loss(x), feed_.data->target(feed_.step, sample)) : x};
  }

  const Feed& feed_;
  bool is_first_;
  bool is_last_;
  at::ScalarType activations_;
  std::int64_t first_layer_;
  std::vector<Layer> layers_;
};

// Vectors of variance 1, and the same vectors with their elements moved on by one place: something that can be learnt.
class VectorData final : public Data {
 public:
  VectorData(const ModelShape& shape, std::uint64_t seed)
      : seed_(seed), batch_(shape.batch), hidden_(shape.hidden), dtype_(dtype(shape)) {}

  at::Tensor input(std::int64_t step, std::int64_t micro_batch) override {
    Random random(seed_, data_stream(step, micro_batch));
    return uniform(random, {batch_, hidden_}, std::sqrt(3.0), dtype_);
  }
  at::Tensor target(std::int64_t step, std::int64_t micro_batch) override {
    return input(step, micro_batch).roll(1, -1);
  }

 private:
  std::uint64_t seed_;
  std::int64_t batch_;
  std::int64_t hidden_;
  at::ScalarType dtype_;
};

}  // namespace

std::unique_ptr<Stage> make_mlp(const ModelShape& shape, int stage, const Feed& feed, Device& device) {
  return std::make_unique<MlpStage>(shape, stage, feed, device);
}

std::unique_ptr<Data> mlp_data(const ModelShape& shape, std::uint64_t seed) {
  return std::make_unique<VectorData>(shape, seed);
}

}  // namespace dualpipe::detail::model
