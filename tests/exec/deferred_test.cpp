#include "dualpipe/exec/stage/deferred.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/autograd.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/stage/autograd_stage.h"
#include "tests/exec/chain.h"

namespace dualpipe {
namespace {

namespace deferred = detail::stage::deferred;
using detail::stage::AutogradStage;
using detail::stage::WeightGradients;
using test::only;
using test::same_bits;

const std::vector<bool> both_types = {false, true};

// As a rank runs: small matrices gain nothing from threads that wait for each other.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
};

BOOST_AUTO_TEST_SUITE(exec_deferred, *boost::unit_test::fixture<OneThread>())

// A linear layer that is deferred, and a convolution and a scale that are not.
class MixedStage final : public AutogradStage {
 public:
  explicit MixedStage(bool plain) : AutogradStage(1), plain_(plain) {}

  Tensors compute(std::uint32_t /*micro_batch*/, const Tensors& inputs) override {
    const at::Tensor x = at::conv2d(inputs[0], filter_, {}, 1, 1);
    const at::Tensor y =
        plain_ ? at::linear(x, weight_, bias_) : deferred::linear(weight_gradients(), x, weight_, bias_);
    return {at::tanh(y) * scale_};
  }
  std::vector<NamedTensor> named_parameters() override {
    return {{"weight", weight_}, {"bias", bias_}, {"filter", filter_}, {"scale", scale_}};
  }

 private:
  static at::Tensor values(at::IntArrayRef sizes, double factor) {
    std::int64_t numel = 1;
    for (const std::int64_t size : sizes) numel *= size;
    return at::sin(at::arange(numel, at::kDouble) * factor).view(sizes).set_requires_grad(true);
  }

  bool plain_;
  at::Tensor weight_ = values({5, 5}, 0.7);
  at::Tensor bias_ = values({5}, 0.3);
  at::Tensor filter_ = values({4, 3, 3, 3}, 0.9);
  at::Tensor scale_ = values({4, 5, 5}, 1.1);
};

BOOST_AUTO_TEST_CASE(layers_can_be_deferred_and_need_not_be) {
  const at::Tensor input = at::cos(at::arange(2 * 3 * 5 * 5, at::kDouble)).view({2, 3, 5, 5});
  const at::Tensor gradient = at::sin(at::arange(2 * 4 * 5 * 5, at::kDouble)).view({2, 4, 5, 5});
  MixedStage plain(true);
  MixedStage full(false);
  MixedStage halves(false);
  for (std::uint32_t i = 0; i < 2; ++i) {
    const at::Tensor x = input * (i + 1.0);
    BOOST_TEST(same_bits(only(plain.forward(i, {x})), only(full.forward(i, {x}))));
    static_cast<void>(halves.forward(i, {x}));
    const at::Tensor expected = only(plain.backward(i, {gradient}));
    BOOST_TEST(same_bits(only(full.backward(i, {gradient})), expected));
    BOOST_TEST(same_bits(only(halves.backward_input(i, {gradient})), expected));
  }
  BOOST_TEST(!halves.parameters()[0].grad().defined());  // deferred
  BOOST_TEST(halves.parameters()[2].grad().defined());   // not
  for (std::uint32_t i = 0; i < 2; ++i) halves.backward_weight(i);
  for (std::size_t i = 0; i < 4; ++i) {
    BOOST_TEST(same_bits(full.parameters()[i].grad(), plain.parameters()[i].grad()), "full, parameter " << i);
    BOOST_TEST(same_bits(halves.parameters()[i].grad(), plain.parameters()[i].grad()), "halves, parameter " << i);
  }
}

// Some function of the input and the parameters, deferred or by plain autograd.
struct Layer {
  using Function =
      std::function<at::Tensor(WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters)>;
  std::string name;
  std::vector<std::vector<std::int64_t>> sizes;  // of the input, and of each parameter
  Function deferred;
  Function plain;
};
std::ostream& operator<<(std::ostream& out, const Layer& layer) { return out << layer.name; }

Layer rms_norm_of(const std::vector<std::int64_t>& sizes) {
  return {"rms_norm",
          {sizes, {sizes.back()}},
          [](WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters) {
            return deferred::rms_norm(gradients, x, parameters[0], 1e-5);
          },
          [](WeightGradients&, const at::Tensor& x, const Tensors& parameters) {
            return at::rms_norm(x, parameters[0].sizes(), parameters[0], 1e-5);
          }};
}

Layer batched_linear_of(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& weight) {
  return {"batched_linear",
          {sizes, weight},
          [](WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters) {
            return deferred::batched_linear(gradients, x, parameters[0]);
          },
          [](WeightGradients&, const at::Tensor& x, const Tensors& parameters) { return at::bmm(x, parameters[0]); }};
}

Layer addmm_of(const std::vector<std::int64_t>& sizes, std::int64_t outputs) {
  return {"addmm",
          {sizes, {sizes.back(), outputs}, {outputs}},
          [](WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters) {
            return deferred::addmm(gradients, parameters[1], x, parameters[0], {parameters[0], parameters[1]});
          },
          [](WeightGradients&, const at::Tensor& x, const Tensors& parameters) {
            return at::addmm(parameters[1], x, parameters[0]);
          }};
}

Layer convolution_of(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& weight, bool has_bias,
                     const deferred::Convolution& form) {
  std::vector<std::vector<std::int64_t>> all{sizes, weight};
  if (has_bias) all.push_back({weight[0]});
  const auto bias_of = [has_bias](const Tensors& parameters) { return has_bias ? parameters[1] : at::Tensor(); };
  return {"convolution", all,
          [form, bias_of](WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters) {
            const at::Tensor bias = bias_of(parameters);
            return deferred::convolution(gradients, x, parameters[0], bias, form, {parameters[0], bias});
          },
          [form, bias_of](WeightGradients&, const at::Tensor& x, const Tensors& parameters) {
            const std::vector<std::int64_t> no_output_padding(form.stride.size(), 0);
            return at::convolution(x, parameters[0], bias_of(parameters), form.stride, form.padding, form.dilation,
                                   /*transposed=*/false, no_output_padding, form.groups);
          }};
}

const std::vector<Layer> layers_of_their_own = {
    rms_norm_of({8}),
    rms_norm_of({3, 5, 24}),
    rms_norm_of({4, 1}),
    rms_norm_of({2, 3, 4, 67}),
    batched_linear_of({3, 5, 8}, {3, 8, 6}),
    batched_linear_of({4, 20, 48}, {4, 48, 48}),
    batched_linear_of({1, 1, 1}, {1, 1, 1}),
    addmm_of({5, 8}, 6),
    addmm_of({1, 1}, 1),
    convolution_of({2, 3, 9}, {4, 3, 3}, true, {{1}, {1}, {1}}),
    convolution_of({2, 4, 9, 7}, {6, 2, 3, 2}, false, {{2, 1}, {1, 0}, {1, 2}, 2}),
    convolution_of({1, 2, 4, 5, 6}, {3, 2, 2, 2, 2}, true, {{1, 1, 1}, {0, 0, 0}, {1, 1, 1}}),
};

// The input comes from an operation and goes around the layer, too: its gradient is a sum.
class LayerStage final : public AutogradStage {
 public:
  LayerStage(const Layer& layer, at::ScalarType dtype, bool plain)
      : AutogradStage(1), function_(plain ? layer.plain : layer.deferred) {
    for (std::size_t i = 1; i < layer.sizes.size(); ++i) {
      parameters_.push_back(wave(layer.sizes[i], 0.7 + static_cast<double>(i), dtype).set_requires_grad(true));
    }
  }

  static at::Tensor wave(at::IntArrayRef sizes, double factor, at::ScalarType dtype) {
    return at::sin(at::arange(c10::multiply_integers(sizes), at::kDouble) * factor + 0.5).view(sizes).to(dtype);
  }

  Tensors compute(std::uint32_t /*micro_batch*/, const Tensors& inputs) override {
    const at::Tensor x = at::gelu(inputs[0]);
    const at::Tensor y = function_(weight_gradients(), x, parameters_);
    return {y.sizes() == x.sizes() ? x + at::tanh(y) : at::tanh(y)};
  }
  std::vector<NamedTensor> named_parameters() override {
    std::vector<NamedTensor> named;
    for (const at::Tensor& parameter : parameters_) named.push_back({std::to_string(named.size()), parameter});
    return named;
  }

 private:
  Layer::Function function_;
  Tensors parameters_;
};

BOOST_DATA_TEST_CASE(layers_have_the_bits_of_plain_autograd,
                     boost::unit_test::data::make(layers_of_their_own) * boost::unit_test::data::make(both_types),
                     layer, float64) {
  const at::ScalarType dtype = float64 ? at::kDouble : at::kFloat;
  LayerStage plain(layer, dtype, true);
  LayerStage full(layer, dtype, false);
  LayerStage halves(layer, dtype, false);
  for (std::uint32_t i = 0; i < 2; ++i) {
    const at::Tensor x = LayerStage::wave(layer.sizes[0], 0.3 + i, dtype);
    const at::Tensor output = only(plain.forward(i, {x}));
    BOOST_TEST(same_bits(only(full.forward(i, {x})), output));
    BOOST_TEST(same_bits(only(halves.forward(i, {x})), output));
    const at::Tensor gradient = LayerStage::wave(output.sizes(), 1.1 + i, dtype);
    const at::Tensor expected = only(plain.backward(i, {gradient}));
    BOOST_TEST(same_bits(only(full.backward(i, {gradient})), expected));
    BOOST_TEST(same_bits(only(halves.backward_input(i, {gradient})), expected));
  }
  for (const at::Tensor& parameter : halves.parameters()) BOOST_TEST(!parameter.grad().defined());
  for (std::uint32_t i = 0; i < 2; ++i) halves.backward_weight(i);
  for (std::size_t i = 0; i < plain.parameters().size(); ++i) {
    const at::Tensor expected = plain.parameters()[i].grad();
    BOOST_TEST(expected.abs().max().item<double>() > 0);
    BOOST_TEST(same_bits(full.parameters()[i].grad(), expected), "full, parameter " << i);
    BOOST_TEST(same_bits(halves.parameters()[i].grad(), expected), "halves, parameter " << i);
  }
}

BOOST_DATA_TEST_CASE(frozen_parameters_of_a_layer_get_no_gradient, boost::unit_test::data::make(layers_of_their_own),
                     layer) {
  LayerStage stage(layer, at::kDouble, false);
  stage.parameters()[0].set_requires_grad(false);
  const at::Tensor x = LayerStage::wave(layer.sizes[0], 0.3, at::kDouble);
  const at::Tensor gradient = at::ones_like(only(stage.forward(0, {x})));
  static_cast<void>(stage.backward_input(0, {gradient}));
  stage.backward_weight(0);
  for (std::size_t i = 0; i < stage.parameters().size(); ++i) {
    BOOST_TEST(stage.parameters()[i].grad().defined() == (i > 0));
  }
}

// A model whose own function runs a pair, as DeepSeek's overlapped_forward_backward() does: the forward of one
// micro-batch, and plain autograd's backward of another from what that one's function had returned.
class PairedStage final : public AutogradStage {
 public:
  PairedStage() : AutogradStage(1) {}

  Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) override {
    return returned_[micro_batch] = {at::tanh(at::linear(inputs[0], weight_))};
  }
  std::vector<NamedTensor> named_parameters() override { return {{"weight", weight_}}; }

  Overlapped pair(std::uint32_t forward, const at::Tensor& input, std::uint32_t back, const at::Tensor& gradient) {
    Tensors outputs = forward_by(forward, {input}, [&](const Tensors& own) {
      Tensors made = compute(forward, own);
      torch::autograd::backward({only(returned_.at(back))}, {gradient});
      return made;
    });
    return {std::move(outputs), take_input_gradients(back)};
  }

 private:
  at::Tensor weight_ = LayerStage::wave({4, 4}, 0.7, at::kDouble).set_requires_grad(true);
  std::map<std::uint32_t, Tensors> returned_;
};

BOOST_AUTO_TEST_CASE(a_pair_that_the_model_runs_by_itself) {
  PairedStage plain;
  PairedStage paired;
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> gradients;
  for (const int i : {0, 1}) {
    inputs.push_back(LayerStage::wave({3, 4}, 0.3 + i, at::kDouble));
    gradients.push_back(LayerStage::wave({3, 4}, 1.1 + i, at::kDouble));
  }
  static_cast<void>(plain.forward(0, {inputs[0]}));
  const at::Tensor output = only(plain.forward(1, {inputs[1]}));
  const at::Tensor first = only(plain.backward(0, {gradients[0]}));
  const at::Tensor second = only(plain.backward(1, {gradients[1]}));

  static_cast<void>(paired.forward(0, {inputs[0]}));
  const Overlapped pair = paired.pair(1, inputs[1], 0, gradients[0]);
  BOOST_TEST(same_bits(only(pair.outputs), output));
  BOOST_TEST(same_bits(only(pair.input_gradients), first));
  BOOST_TEST(same_bits(only(paired.backward(1, {gradients[1]})), second));
  BOOST_TEST(same_bits(paired.parameters()[0].grad(), plain.parameters()[0].grad()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
