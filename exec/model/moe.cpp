// A mixture of experts, as DeepSeek's (arXiv:2401.06066, arXiv:2412.19437): a GPT whose blocks have, instead of an MLP,
// experts, of which each token goes to the `top_k` that its router prefers, and one expert that all tokens share. An
// expert is a SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x)).
//
//     x = x + attention(norm(x))
//     y = norm(x);  x = x + shared(y) + sum over the chosen experts that have a place of weight * expert(y)
//
// Tokens above an expert's capacity get nothing of it (routing.h). There is no loss for an even load.
//
// The parts of a layer (parted_stage.h): the attention, up to what goes to the experts · dispatch · the experts ·
// combine · the sum, which begins the part of the next layer's attention. The shared expert belongs to the part of the
// experts, but needs nothing of the exchange: it is computed meanwhile, and so hides the exchange in an F or a B by
// itself, too.
#include <ATen/TensorOperators.h>
#include <ATen/ops/silu.h>
#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <span>

#include "dualpipe/exec/model/layers.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/exec/model/routing.h"
#include "dualpipe/exec/model/transformer.h"
#include "dualpipe/exec/stage/parted_stage.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::model {

using stage::PartedStage;

namespace {

// Of [..., 2 * size], the gates and what they let through.
at::Tensor swiglu(const at::Tensor& gate_and_up) {
  const std::vector<at::Tensor> parts = gate_and_up.chunk(2, -1);
  return at::silu(parts[0]) * parts[1];
}

// One expert, or of batched layers several, each for its part of the input.
template <typename Layer>
struct Expert {
  Layer gate_up;
  Layer down;

  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const { return down(swiglu(gate_up(x))); }
  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    gate_up.append_parameters(name + ".gate_up", all);
    down.append_parameters(name + ".down", all);
  }
};

// The weights are drawn in the order of the members.
Expert<Linear> shared_expert(Random& random, const ModelShape& shape, const LayerOptions& options) {
  return {Linear(random, shape.hidden, 2 * shape.expert_hidden, Linear::Bias::no, linear_gain, options),
          Linear(random, shape.expert_hidden, shape.hidden, Linear::Bias::no, linear_gain, options)};
}
// Of [experts, places, hidden].
Expert<BatchedLinear> routed_experts(Random& random, const ModelShape& shape, const LayerOptions& options) {
  return {BatchedLinear(random, shape.experts, shape.hidden, 2 * shape.expert_hidden, linear_gain, options),
          BatchedLinear(random, shape.experts, shape.expert_hidden, shape.hidden, linear_gain, options)};
}

// What stays where it is while the slots go to the experts, and come back.
struct Beside {
  at::Tensor x;  // [batch, sequence, hidden]
  at::Tensor y;  // norm(x), until the shared expert has had it
  Routing routing;

  static Beside unpack(std::span<const at::Tensor> all) { return {all[0], all[1], {all[2], all[3], all[4]}}; }
  [[nodiscard]] Tensors pack() const { return {x, y, routing.weights, routing.slot, routing.assignment}; }
  [[nodiscard]] Tensors pack_behind(const at::Tensor& slots) const {
    return {slots, x, y, routing.weights, routing.slot, routing.assignment};
  }
};

class MoeBlock {
 public:
  MoeBlock(Random random, const ModelShape& shape, const LayerOptions& options)
      : top_k_(shape.top_k),
        experts_count_(shape.experts),
        capacity_(expert_capacity(shape.capacity, shape.batch * shape.sequence, shape.top_k, shape.experts)),
        attention_(random, shape, options),
        norm_(shape.norm, shape.hidden, options),
        router_dtype_(options.dtype),
        router_(random, shape.hidden, shape.experts, Linear::Bias::no, linear_gain, in_full(options)),
        experts_(routed_experts(random, shape, options)),
        shared_(shared_expert(random, shape, options)) {}

  // The slots, and what stays.
  [[nodiscard]] Tensors attend(const at::Tensor& input) const {
    const at::Tensor x = attention_(input);
    const at::Tensor y = norm_(x);
    const at::Tensor tokens = y.flatten(0, 1);
    const Beside beside = {x, y, route(router_(tokens.to(router_dtype_)), top_k_, capacity_)};
    return beside.pack_behind(dispatch(tokens, beside.routing));
  }

  [[nodiscard]] Beside add_shared(const Beside& in) const { return {in.x + shared_(in.y), {}, in.routing}; }

  [[nodiscard]] at::Tensor apply_experts(const at::Tensor& slots) const {
    return experts_(slots.view({experts_count_, capacity_, slots.size(1)})).flatten(0, 1);
  }

  [[nodiscard]] static at::Tensor add_experts(const at::Tensor& slots, const Beside& in) {
    return in.x + combine(slots, in.routing).view_as(in.x);
  }

  void append_parameters(const std::string& name, std::vector<NamedTensor>& all) const {
    attention_.append_parameters(name, all);
    norm_.append_parameters(name + ".experts_norm", all);
    router_.append_parameters(name + ".router", all);
    experts_.append_parameters(name + ".experts", all);
    shared_.append_parameters(name + ".shared", all);
  }

 private:
  std::int64_t top_k_;
  std::int64_t experts_count_;
  std::int64_t capacity_;  // of each expert, in tokens
  Attention attention_;
  Norm norm_;
  at::ScalarType router_dtype_;  // that of its parameters: what rounds to the same has no order
  Linear router_;
  Expert<BatchedLinear> experts_;
  Expert<Linear> shared_;
};

class MoeStage final : public PartedStage {
 public:
  MoeStage(const ModelShape& shape, int stage, const Feed& feed, Device& device)
      : PartedStage(device, {shape.loss_scale, shape.recompute, shape.interleave}),
        layers_(shape, stage, feed, layer_options(shape, device, weight_gradients(), held_by_layers())) {
    const std::size_t count = layers_.blocks.size();
    for (std::size_t i = 0; i < count; ++i) add_parts_of(i);
    const auto end = [this, count](std::uint32_t micro_batch, const Tensors& inputs) {
      return Tensors{layers_.ends.end(micro_batch, input_of(count, micro_batch, inputs))};
    };
    add_compute({is_last(shape, stage) ? "head" : "sum", end});
  }

  [[nodiscard]] std::vector<NamedTensor> named_parameters() override { return layers_.named_parameters(); }
  [[nodiscard]] std::vector<at::Tensor> tied_parameters() override { return layers_.ends.tied_parameters(); }
  void add_up_gradients() override { layers_.ends.add_up_gradients(); }

 private:
  void add_parts_of(std::size_t block) {
    const auto attend = [this, block](std::uint32_t micro_batch, const Tensors& inputs) {
      return layers_.blocks[block].attend(input_of(block, micro_batch, inputs));
    };
    const auto apply_experts = [this, block](std::uint32_t, const Tensors& inputs) {
      Tensors outputs = inputs;
      outputs[0] = layers_.blocks[block].apply_experts(inputs[0]);
      return outputs;
    };
    const auto add_shared = [this, block](std::uint32_t, const Tensors& inputs) {
      return layers_.blocks[block].add_shared(Beside::unpack(inputs)).pack();
    };
    add_compute({"attention", attend});
    add_exchange("dispatch");
    add_compute({"experts", apply_experts}, {"shared", add_shared});
    add_exchange("combine");
  }

  // Of a block, or of what is behind the last one.
  [[nodiscard]] at::Tensor input_of(std::size_t block, std::uint32_t micro_batch, const Tensors& inputs) const {
    if (block == 0) return layers_.ends.begin(micro_batch, inputs);
    return MoeBlock::add_experts(inputs[0], Beside::unpack(std::span(inputs).subspan(1)));
  }

  TransformerLayers<MoeBlock> layers_;
};

}  // namespace

std::unique_ptr<Stage> make_moe(const ModelShape& shape, int stage, const Feed& feed, Device& device) {
  check_heads(shape);
  if (shape.top_k > shape.experts) {
    throw InputError(fmt::format("moe: a token cannot go to {} of {} experts; lower --top-k, or raise --experts",
                                 shape.top_k, shape.experts));
  }
  if (!(shape.capacity > 0) || !std::isfinite(shape.capacity)) {
    throw InputError(
        fmt::format("moe: the capacity of an expert is {} times an even share of the tokens; it must be "
                    "above 0",
                    shape.capacity));
  }
  return std::make_unique<MoeStage>(shape, stage, feed, device);
}

}  // namespace dualpipe::detail::model
