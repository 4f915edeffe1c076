#include "dualpipe/exec/stage/deferred.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/accumulate.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "dualpipe/exec/stage/autograd_stage.h"
#include "tests/exec/chain.h"

namespace dualpipe {
namespace {

namespace deferred = detail::stage::deferred;
using detail::stage::AutogradStage;
using detail::stage::Tensors;
using detail::stage::WeightGradients;
using test::same_bits;

const std::vector<bool> both_types = {false, true};

// As a rank runs: small matrices gain nothing from threads that wait for each other.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
};

BOOST_AUTO_TEST_SUITE(exec_deferred, *boost::unit_test::fixture<OneThread>())

// A convolution that is deferred as `layer`, and a scale and a bias that are not deferred at all.
class MixedStage final : public AutogradStage {
 public:
  explicit MixedStage(bool plain) : AutogradStage(1), plain_(plain) {}

  at::Tensor compute(std::uint32_t /*micro_batch*/, const at::Tensor& input) override {
    const auto apply = [this](const at::Tensor& x) { return at::conv2d(x, weight_, bias_, 1, 1); };
    const at::Tensor x = plain_ ? apply(input) : deferred::layer(weight_gradients(), input, {weight_, bias_}, apply);
    return at::tanh(x) * scale_;
  }
  std::vector<NamedTensor> named_parameters() override {
    return {{"weight", weight_}, {"bias", bias_}, {"scale", scale_}};
  }

 private:
  static at::Tensor values(at::IntArrayRef sizes, double factor) {
    std::int64_t numel = 1;
    for (const std::int64_t size : sizes) numel *= size;
    return at::sin(at::arange(numel, at::kDouble) * factor).view(sizes).set_requires_grad(true);
  }

  bool plain_;
  at::Tensor weight_ = values({4, 3, 3, 3}, 0.7);
  at::Tensor bias_ = values({4}, 0.3);
  at::Tensor scale_ = values({4, 5, 5}, 1.1);
};

BOOST_AUTO_TEST_CASE(other_layers_can_be_deferred_and_need_not_be) {
  const at::Tensor input = at::cos(at::arange(2 * 3 * 5 * 5, at::kDouble)).view({2, 3, 5, 5});
  const at::Tensor gradient = at::sin(at::arange(2 * 4 * 5 * 5, at::kDouble)).view({2, 4, 5, 5});
  MixedStage plain(true);
  MixedStage full(false);
  MixedStage halves(false);
  for (std::uint32_t i = 0; i < 2; ++i) {
    const at::Tensor x = input * (i + 1.0);
    BOOST_TEST(same_bits(plain.forward(i, x), full.forward(i, x)));
    static_cast<void>(halves.forward(i, x));
    const at::Tensor expected = plain.backward(i, gradient);
    BOOST_TEST(same_bits(full.backward(i, gradient), expected));
    BOOST_TEST(same_bits(halves.backward_input(i, gradient), expected));
  }
  BOOST_TEST(!halves.parameters()[0].grad().defined());  // deferred
  BOOST_TEST(halves.parameters()[2].grad().defined());   // not
  for (std::uint32_t i = 0; i < 2; ++i) halves.backward_weight(i);
  for (std::size_t i = 0; i < 3; ++i) {
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

// A weight of [outputs, inputs / groups, height, width]; a bias where it is asked for.
Layer conv2d_of(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& weight, bool with_bias,
                const deferred::Conv2dOptions& options) {
  Layer layer;
  layer.name = "conv2d";
  layer.sizes = {sizes, weight};
  if (with_bias) layer.sizes.push_back({weight[0]});
  layer.deferred = [=](WeightGradients& gradients, const at::Tensor& x, const Tensors& parameters) {
    return deferred::conv2d(gradients, x, parameters[0], with_bias ? parameters[1] : at::Tensor(), options);
  };
  layer.plain = [=](WeightGradients&, const at::Tensor& x, const Tensors& parameters) {
    return at::conv2d(x, parameters[0], with_bias ? parameters[1] : at::Tensor(), options.stride, options.padding,
                      options.dilation, options.groups);
  };
  return layer;
}

const std::vector<Layer> layers_of_their_own = {
    rms_norm_of({8}),
    rms_norm_of({3, 5, 24}),
    rms_norm_of({4, 1}),
    rms_norm_of({2, 3, 4, 67}),
    batched_linear_of({3, 5, 8}, {3, 8, 6}),
    batched_linear_of({4, 20, 48}, {4, 48, 48}),
    batched_linear_of({1, 1, 1}, {1, 1, 1}),
    conv2d_of({2, 3, 5, 6}, {4, 3, 3, 3}, true, {.padding = {1, 1}}),
    conv2d_of({2, 3, 5, 6}, {4, 3, 3, 2}, false, {}),
    conv2d_of({1, 4, 9, 7}, {6, 2, 3, 2}, true, {{2, 1}, {0, 2}, {1, 2}, 2}),
    conv2d_of({3, 4, 5, 5}, {8, 1, 3, 3}, false, {.stride = {2, 2}, .groups = 4}),  // depthwise
    conv2d_of({4, 16, 12, 12}, {32, 16, 3, 3}, true, {.padding = {1, 1}}),
    conv2d_of({4, 16, 12, 12}, {8, 16, 1, 1}, true, {}),
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

  at::Tensor compute(std::uint32_t /*micro_batch*/, const at::Tensor& input) override {
    const at::Tensor x = at::gelu(input);
    const at::Tensor y = function_(weight_gradients(), x, parameters_);
    return y.sizes() == x.sizes() ? x + at::tanh(y) : at::tanh(y);
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
    const at::Tensor output = plain.forward(i, x);
    BOOST_TEST(same_bits(full.forward(i, x), output));
    BOOST_TEST(same_bits(halves.forward(i, x), output));
    const at::Tensor gradient = LayerStage::wave(output.sizes(), 1.1 + i, dtype);
    const at::Tensor expected = plain.backward(i, gradient);
    BOOST_TEST(same_bits(full.backward(i, gradient), expected));
    BOOST_TEST(same_bits(halves.backward_input(i, gradient), expected));
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
  const at::Tensor gradient = at::ones_like(stage.forward(0, x));
  static_cast<void>(stage.backward_input(0, gradient));
  stage.backward_weight(0);
  for (std::size_t i = 0; i < stage.parameters().size(); ++i) {
    BOOST_TEST(stage.parameters()[i].grad().defined() == (i > 0));
  }
}

BOOST_AUTO_TEST_CASE(a_taken_over_gradient_is_nobody_elses) {
  // Added as it is: the gradient of the parameter is the very tensor that came in.
  class Shift final : public AutogradStage {
   public:
    Shift() : AutogradStage(1) {}
    at::Tensor compute(std::uint32_t /*micro_batch*/, const at::Tensor& input) override {
      return deferred::layer(weight_gradients(), input, {shift}, [this](const at::Tensor& x) { return x + shift; });
    }
    std::vector<NamedTensor> named_parameters() override { return {{"shift", shift}}; }
    at::Tensor shift = at::zeros({3}).set_requires_grad(true);
  };
  Shift stage;
  const at::Tensor gradient = at::ones({3});
  for (std::uint32_t i = 0; i < 2; ++i) {
    static_cast<void>(stage.forward(i, at::zeros({3})));
    static_cast<void>(stage.backward(i, gradient));
  }
  BOOST_TEST(at::equal(gradient, at::ones({3})));
  BOOST_TEST(at::equal(stage.shift.grad(), at::ones({3}) * 2));
}
BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
