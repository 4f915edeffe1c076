#include "dualpipe/exec/stage/stage.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/util/accumulate.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/stage/autograd_stage.h"
#include "dualpipe/exec/stage/deferred.h"
#include "dualpipe/exec/stage/model.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/chain.h"
#include "tests/exec/training.h"
#include "tests/thinned.h"

namespace dualpipe {

using detail::replay::MemoryMeter;
using detail::stage::AutogradStage;
using detail::stage::Tensors;
using detail::stage::WeightGradients;
namespace deferred = detail::stage::deferred;

namespace {

using test::Chain;
using test::same_bits;
using test::small;
using test::thinned;
using Tensors = std::vector<at::Tensor>;

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no refusal";
}

Tensors gradients(const Tensors& parameters) {
  Tensors result;
  for (const at::Tensor& parameter : parameters) result.push_back(parameter.grad());
  return result;
}

// The models once more, by plain autograd and without stages.

// In bfloat16: what goes through the layers. Else as it is.
at::Tensor lowered(const at::Tensor& x, const ModelShape& shape) {
  return shape.precision == Precision::bfloat16 ? x.to(at::kBFloat16) : x;
}
at::Tensor raised(const at::Tensor& x, const ModelShape& shape) {
  return shape.precision == Precision::bfloat16 ? x.to(at::kFloat) : x;
}

at::Tensor plain_mlp(const Tensors& parameters, const ModelShape& shape, const at::Tensor& input,
                     const at::Tensor& target) {
  at::Tensor x = lowered(input, shape);
  for (std::size_t i = 0; i < parameters.size(); i += 2) {
    x = at::linear(at::gelu(at::linear(x, lowered(parameters[i], shape))), lowered(parameters[i + 1], shape));
  }
  return at::mse_loss(raised(x, shape), target);
}

at::Tensor plain_gpt(const Tensors& parameters, const ModelShape& shape, const at::Tensor& input,
                     const at::Tensor& target) {
  auto next = parameters.begin();
  const auto linear = [&next, &shape](const at::Tensor& x) {
    const at::Tensor weight = *next++;
    return at::linear(x, lowered(weight, shape), lowered(*next++, shape));
  };
  const auto norm = [&next, &shape](const at::Tensor& x) {
    const at::Tensor weight = *next++;
    const at::Tensor y = raised(x, shape);
    if (shape.norm == NormKind::rms) return lowered(at::rms_norm(y, {shape.hidden}, weight, 1e-5), shape);
    return lowered(at::layer_norm(y, {shape.hidden}, weight, *next++, 1e-5), shape);
  };
  const std::int64_t size = shape.hidden / shape.heads;

  const at::Tensor tokens = lowered(at::embedding(*next++, input), shape);
  at::Tensor x = tokens + lowered(at::embedding(*next++, at::arange(shape.sequence)), shape);
  for (int block = std::accumulate(shape.layers.begin(), shape.layers.end(), 0); block > 0; --block) {
    const at::Tensor heads =
        linear(norm(x)).view({shape.batch, shape.sequence, 3, shape.heads, size}).permute({2, 0, 3, 1, 4});
    const at::Tensor mixed = at::scaled_dot_product_attention(heads[0], heads[1], heads[2], {}, 0.0, true);
    x = x + linear(mixed.transpose(1, 2).reshape({shape.batch, shape.sequence, shape.hidden}));
    const at::Tensor up = linear(norm(x));
    x = x + linear(at::gelu(up));
  }
  const at::Tensor last = norm(x);
  const at::Tensor logits = raised(at::linear(last, lowered(shape.tied ? parameters[0] : *next++, shape)), shape);
  BOOST_TEST((next == parameters.end()));
  return at::cross_entropy_loss(logits.view({-1, shape.vocabulary}), target.view(-1));
}

struct Result {
  Tensors losses;
  Tensors gradients;
};

constexpr std::uint32_t micro_batches = 6;

Result run_plain(const ModelShape& shape) {
  ModelShape whole = shape;
  whole.layers = {std::accumulate(shape.layers.begin(), shape.layers.end(), 0)};
  Chain chain(whole);
  const Tensors parameters = chain.parameters();
  const auto loss_of = shape.model == "mlp" ? plain_mlp : plain_gpt;
  Result result;
  for (std::uint32_t i = 0; i < micro_batches; ++i) {
    const at::Tensor loss = loss_of(parameters, shape, chain.data->input(2, 10 + i), chain.data->target(2, 10 + i));
    (loss * shape.loss_scale).backward();
    result.losses.push_back(loss.detach());
  }
  result.gradients = gradients(parameters);
  return result;
}

enum class Passes { full, halves, late_weights };
std::ostream& operator<<(std::ostream& out, Passes passes) {
  return out << std::array{"full", "halves", "late_weights"}[static_cast<std::size_t>(passes)];
}

// Three micro-batches in flight; the gradients are added in the order of the micro-batches.
Result run_stages(const ModelShape& shape, Passes passes) {
  Chain chain(shape);
  Result result;
  for (std::uint32_t i = 0; i < micro_batches + 2; ++i) {
    if (i < micro_batches) result.losses.push_back(chain.forward(i));
    if (i < 2) continue;
    if (passes == Passes::full) {
      chain.backward(i - 2);
    } else {
      chain.backward_input(i - 2);
      if (passes == Passes::halves) chain.backward_weight(i - 2);
    }
  }
  if (passes == Passes::late_weights) {
    for (std::uint32_t i = 0; i < micro_batches; ++i) chain.backward_weight(i);
  }
  chain.add_up_gradients();
  result.gradients = chain.gradients();
  return result;
}

// A model, and how it is put together and run.
struct Variant {
  std::string model;
  Recompute recompute = Recompute::none;
  NormKind norm = NormKind::layer;

  void apply_to(ModelShape& shape) const {
    shape.recompute = recompute;
    shape.norm = norm;
  }
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.model << std::array{"", ", full", ", attention"}[static_cast<std::size_t>(variant.recompute)]
             << (variant.norm == NormKind::rms ? ", rms" : "");
}

ModelShape small(const Variant& variant, std::vector<int> layers) {
  ModelShape shape = small(variant.model, std::move(layers));
  variant.apply_to(shape);
  return shape;
}

const std::vector<Variant> variants = {
    {"mlp"},
    {"mlp", Recompute::full},
    {"gpt", Recompute::none, NormKind::rms},
    {"gpt", Recompute::full, NormKind::rms},
    {"gpt"},
    {"gpt", Recompute::attention},
    {"gpt", Recompute::full},
};
const std::vector<std::string> models = {"mlp", "gpt", "moe"};
const std::vector<Passes> all_passes = {Passes::full, Passes::halves, Passes::late_weights};
const std::vector<bool> both_types = {false, true};
const std::vector<Precision> all_types = {Precision::float32, Precision::float64, Precision::bfloat16};

struct TemporaryFile {
  explicit TemporaryFile(const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }
  ~TemporaryFile() { std::filesystem::remove(path); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path =
      (std::filesystem::temp_directory_path() / ("dualpipe_tokens_" + std::to_string(::getpid()))).string();
};

std::string int32s(const std::vector<std::int32_t>& values) {
  std::string bytes(values.size() * sizeof(std::int32_t), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// As a rank runs: small matrices gain nothing from threads that wait for each other.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
};

BOOST_AUTO_TEST_SUITE(exec_stage, *boost::unit_test::fixture<OneThread>())

BOOST_DATA_TEST_CASE(stages_have_the_bits_of_plain_autograd,
                     thinned(4, boost::unit_test::data::make(variants) * boost::unit_test::data::make(all_types)),
                     variant, precision) {
  for (const std::vector<int>& layers :
       std::vector<std::vector<int>>{{4}, {2, 2}, {2, 1, 1}, {1, 1, 1, 1}, {0, 4, 0}}) {
    ModelShape shape = small(variant, layers);
    shape.precision = precision;
    const Result expected = run_plain(shape);
    for (const Passes passes : all_passes) {
      BOOST_TEST_CONTEXT(layers.size() << " stages, " << passes) {
        const Result result = run_stages(shape, passes);
        BOOST_REQUIRE_EQUAL(result.gradients.size(), expected.gradients.size());
        for (std::size_t i = 0; i < micro_batches; ++i) BOOST_TEST(same_bits(result.losses[i], expected.losses[i]));
        for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
          BOOST_TEST(same_bits(result.gradients[i], expected.gradients[i]), "gradient of parameter " << i);
        }
      }
    }
  }
}

BOOST_DATA_TEST_CASE(parameters_do_not_depend_on_the_split, boost::unit_test::data::make(models), model) {
  const Tensors whole = Chain(small(model, {5})).parameters();
  const Tensors split = Chain(small(model, {1, 0, 3, 1})).parameters();
  BOOST_REQUIRE_EQUAL(whole.size(), split.size());
  for (std::size_t i = 0; i < whole.size(); ++i) BOOST_TEST(same_bits(whole[i], split[i]), "parameter " << i);

  ModelShape other = small(model, {5});
  other.seed = 12;
  BOOST_TEST(!same_bits(whole[0], Chain(other).parameters()[0]));
  if (model == "mlp") BOOST_TEST(!same_bits(whole[0], whole[2]), "two layers with the same parameters");
}

// Autograd adds the gradients of both uses to each other first, a stage each to its own sum.
BOOST_DATA_TEST_CASE(a_tied_head_is_the_embedding, boost::unit_test::data::make(all_passes), passes) {
  ModelShape shape = small("gpt", {2});
  shape.tied = true;
  const Result expected = run_plain(shape);
  const Result result = run_stages(shape, passes);
  BOOST_REQUIRE_EQUAL(result.gradients.size(), expected.gradients.size());
  for (std::size_t i = 0; i < micro_batches; ++i) BOOST_TEST(same_bits(result.losses[i], expected.losses[i]));
  BOOST_TEST(at::allclose(result.gradients[0], expected.gradients[0], 1e-12, 1e-15));
  for (std::size_t i = 1; i < expected.gradients.size(); ++i) {
    BOOST_TEST(same_bits(result.gradients[i], expected.gradients[i]), "gradient of parameter " << i);
  }
}

BOOST_AUTO_TEST_CASE(a_tied_parameter_has_a_copy_in_the_first_and_last_stage) {
  ModelShape shape = small("gpt", {1, 1, 1});
  shape.tied = true;
  Chain chain(shape);
  BOOST_TEST(tied_stages(shape) == (std::vector{0, 2}), boost::test_tools::per_element());
  const at::Tensor first = chain.stages[0]->tied_parameters().at(0);
  const at::Tensor last = chain.stages[2]->tied_parameters().at(0);
  BOOST_TEST(chain.stages[1]->tied_parameters().empty());
  BOOST_TEST(!first.is_same(last));
  BOOST_TEST(same_bits(first, last));
  BOOST_TEST(chain.stages[0]->named_parameters().front().name == "tokens.weight");
  BOOST_TEST(chain.stages[2]->named_parameters().back().name == "tokens.weight");
  for (const auto& stage : chain.stages) {
    BOOST_TEST(stage->parameters().size() - untied_parameters(*stage).size() == stage->tied_parameters().size());
  }

  shape.layers = {3};
  BOOST_TEST(tied_stages(shape) == (std::vector{0}), boost::test_tools::per_element());
  BOOST_TEST(Chain(shape).stages[0]->tied_parameters().size() == 1U);
  shape.tied = false;
  BOOST_TEST(tied_stages(shape).empty());
  BOOST_TEST(Chain(shape).stages[0]->tied_parameters().empty());
}

BOOST_DATA_TEST_CASE(a_micro_batch_leaves_nothing_behind,
                     boost::unit_test::data::make(variants) * boost::unit_test::data::make(all_passes), variant,
                     passes) {
  Chain chain(small(variant, {1, 2, 1}));
  for (std::uint32_t i = 0; i < 2; ++i) {  // from here on each parameter has its gradient
    static_cast<void>(chain.forward(i));
    chain.backward(i);
  }
  const MemoryMeter meter;
  for (std::uint32_t i = 0; i < 3; ++i) static_cast<void>(chain.forward(i));
  BOOST_TEST(meter.held() > 0);
  if (passes == Passes::full) {
    for (std::uint32_t i = 0; i < 3; ++i) chain.backward(i);
  } else {
    for (std::uint32_t i = 0; i < 3; ++i) chain.backward_input(i);
    BOOST_TEST(meter.held() > 0);
    for (std::uint32_t i = 0; i < 3; ++i) chain.backward_weight(i);
  }
  BOOST_TEST(meter.held() == 0);
}

BOOST_DATA_TEST_CASE(input_gradient_leaves_the_parameters_alone, boost::unit_test::data::make(models), model) {
  Chain chain(small(model, {1, 2, 1}));
  static_cast<void>(chain.forward(0));
  chain.backward_input(0);
  for (const at::Tensor& parameter : chain.parameters()) BOOST_TEST(!parameter.grad().defined());
  chain.backward_weight(0);
  for (const at::Tensor& parameter : chain.parameters()) BOOST_TEST(parameter.grad().defined());
}

BOOST_DATA_TEST_CASE(training_lowers_the_loss, boost::unit_test::data::make(models), model) {
  ModelShape shape = small(model, {1, 1});
  shape.precision = Precision::float32;
  shape.batch = 8;
  shape.loss_scale = 1;
  Chain chain(shape);
  std::vector<double> losses;
  for (chain.feed.step = 0; chain.feed.step < 60; ++chain.feed.step) {
    losses.push_back(chain.forward(0).item<double>());
    chain.backward(0);
    const c10::NoGradGuard update;
    for (at::Tensor parameter : chain.parameters()) {
      parameter.sub_(parameter.grad(), 0.3);
      parameter.mutable_grad().reset();
    }
  }
  BOOST_TEST_MESSAGE(model << ": " << losses.front() << " to " << losses.back());
  BOOST_TEST(losses.back() < 0.8 * losses.front());
}

BOOST_AUTO_TEST_CASE(input_gradient_frees_what_only_the_graph_needs) {
  const ModelShape shape = small("mlp", {1, 1, 1});
  Chain chain(shape);
  Stage& stage = *chain.stages[1];
  const at::Tensor input = at::ones({shape.batch, shape.hidden}, at::kDouble);
  static_cast<void>(stage.forward(0, input));
  static_cast<void>(stage.backward(0, input));

  const MemoryMeter meter;
  const std::int64_t row = shape.batch * shape.hidden * 8;  // bytes of one boundary tensor
  static_cast<void>(stage.forward(0, input));
  BOOST_TEST(meter.held() == 2 * 4 * row);  // both sides of the GELU; the input is the caller's
  static_cast<void>(stage.backward_input(0, input));
  BOOST_TEST(meter.held() == 2 * 4 * row);  // the input of `down`, and the gradient of `up`'s output
  stage.backward_weight(0);
  BOOST_TEST(meter.held() == 0);
}

// Bytes held from F on, and from I on, for one micro-batch of the middle stage. The input comes from another stage.
struct HeldBytes {
  Bytes after_forward = 0;
  Bytes after_input_gradient = 0;
};

HeldBytes held_bytes(const ModelShape& shape) {
  Chain chain(shape);
  Stage& stage = *chain.stages[1];
  const at::Tensor input = chain.stages[0]->forward(0, {});
  const at::Tensor gradient = at::ones_like(input);
  static_cast<void>(stage.forward(0, input));  // from here on each parameter has its gradient
  static_cast<void>(stage.backward(0, gradient));
  HeldBytes held;
  const MemoryMeter meter;
  static_cast<void>(stage.forward(0, input.clone()));
  held.after_forward = meter.held();
  static_cast<void>(stage.backward_input(0, gradient));
  held.after_input_gradient = meter.held();
  stage.backward_weight(0);
  BOOST_TEST(meter.held() == 0);
  return held;
}

BOOST_AUTO_TEST_CASE(recomputation_holds_less) {
  for (const std::string& model : models) {
    ModelShape shape = small(model, {1, 2, 1});
    const HeldBytes all = held_bytes(shape);
    shape.recompute = Recompute::full;
    const HeldBytes of_input = held_bytes(shape);
    const Bytes row = shape.batch * shape.hidden * 8;
    BOOST_TEST(of_input.after_forward == (model == "mlp" ? 1 : shape.sequence) * row);
    BOOST_TEST(of_input.after_input_gradient == all.after_input_gradient);
  }
}

// LibTorch's attention keeps no scores, but the logarithm of their sum for each query, and its output, which the
// projection after it needs anyway.
BOOST_AUTO_TEST_CASE(recomputed_attention_holds_less) {
  ModelShape shape = small("gpt", {1, 2, 1});
  const HeldBytes all = held_bytes(shape);
  shape.recompute = Recompute::attention;
  const HeldBytes less = held_bytes(shape);
  const Bytes sums = shape.batch * shape.heads * shape.sequence * 8;
  BOOST_TEST(all.after_forward - less.after_forward == 2 * sums);
  BOOST_TEST(less.after_input_gradient == all.after_input_gradient);
}

BOOST_AUTO_TEST_CASE(evaluation_keeps_nothing) {
  Chain chain(small("gpt", {1, 1}));
  const at::Tensor with_gradients = chain.forward(0);
  const c10::NoGradGuard evaluation;
  const MemoryMeter meter;
  for (std::uint32_t i = 1; i < 4; ++i) static_cast<void>(chain.forward(i));
  BOOST_TEST(meter.held() == 0);
  BOOST_TEST(same_bits(chain.forward(0), with_gradients));
}

BOOST_AUTO_TEST_CASE(tensors_that_cross_have_no_graph) {
  Chain chain(small("gpt", {1, 1}));
  const at::Tensor output = chain.stages[0]->forward(0, {});
  BOOST_TEST(!output.requires_grad());
  const at::Tensor loss = chain.stages[1]->forward(0, output);
  BOOST_TEST(!loss.requires_grad());
  BOOST_TEST(loss.dim() == 0);
  const at::Tensor gradient = chain.stages[1]->backward(0, {});
  BOOST_TEST(!gradient.requires_grad());
  BOOST_TEST((gradient.sizes() == output.sizes()));
  BOOST_TEST(!output.grad().defined());
}

BOOST_AUTO_TEST_CASE(a_step_that_was_broken_off_can_be_run_again) {
  const ModelShape shape = small("mlp", {1, 1});
  Chain chain(shape);
  static_cast<void>(chain.forward(0));
  static_cast<void>(chain.forward(0));
  chain.backward(0);
  Chain once(shape);
  static_cast<void>(once.forward(0));
  once.backward(0);
  BOOST_TEST(same_bits(chain.parameters()[0].grad(), once.parameters()[0].grad()));
}

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

BOOST_AUTO_TEST_CASE(frozen_parameters_get_no_gradient) {
  Chain chain(small("gpt", {1, 1}));
  const Tensors parameters = chain.parameters();
  for (std::size_t i = 0; i < parameters.size(); i += 2) parameters[i].set_requires_grad(false);
  static_cast<void>(chain.forward(0));
  chain.backward_input(0);
  chain.backward_weight(0);
  for (std::size_t i = 0; i < parameters.size(); ++i) BOOST_TEST(parameters[i].grad().defined() == (i % 2 == 1));
}

// The least of some measurements, until one is below `enough`: other processes can only make it longer.
double least_ms(double enough, const std::function<void()>& call) {
  double least = 1e9;
  for (int i = 0; i < 100 && least >= enough; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
    BOOST_TEST(taken.count() >= enough - 1);
    least = std::min(least, taken.count());
  }
  return least;
}

#define CHECK_TAKES(milliseconds, call) \
  BOOST_TEST(least_ms((milliseconds) + 1.0, [&] { static_cast<void>(call); }) < (milliseconds) + 1.0)

ModelShape timed_shape() {
  ModelShape shape = small("timed", {1, 1});
  StageCosts costs;
  costs.forward = 3'000'000;
  costs.backward = 5'000'000;
  costs.input_gradient = 2'000'000;
  costs.weight_gradient = 4'000'000;
  shape.costs.stages = {costs, costs};
  shape.costs.stages[1].overlapped = 6'000'000;
  return shape;
}

BOOST_AUTO_TEST_CASE(timed_ops_take_their_time) {
  Chain chain(timed_shape());
  Stage& first = *chain.stages[0];
  Stage& last = *chain.stages[1];
  CHECK_TAKES(3.0, first.forward(0, {}));
  CHECK_TAKES(5.0, first.backward(0, {}));
  CHECK_TAKES(2.0, last.backward_input(0, {}));
  CHECK_TAKES(4.0, last.backward_weight(0));
  CHECK_TAKES(8.0, forward_backward(first, 0, {}, last, 0, {}));  // not measured together: F + B
  CHECK_TAKES(6.0, forward_backward(last, 0, {}, first, 0, {}));
}

BOOST_AUTO_TEST_CASE(timed_and_empty_stages_pass_small_tensors) {
  ModelShape empty = timed_shape();
  empty.model = "empty";
  for (const ModelShape& shape : {timed_shape(), empty}) {
    Chain chain(shape);
    const at::Tensor output = chain.stages[0]->forward(0, {});
    BOOST_TEST(output.numel() == 1);
    BOOST_TEST(chain.stages[1]->forward(0, output).dim() == 0);
    BOOST_TEST(chain.stages[1]->backward(0, {}).numel() == 1);
    BOOST_TEST(!chain.stages[0]->backward(0, output).defined());
    BOOST_TEST(!chain.stages[0]->backward_input(0, output).defined());
    const Overlapped pair = forward_backward(*chain.stages[1], 0, output, *chain.stages[0], 0, output);
    BOOST_TEST(pair.output.dim() == 0);
    BOOST_TEST(!pair.input_gradient.defined());
    BOOST_TEST(chain.parameters().empty());
  }
}

BOOST_DATA_TEST_CASE(a_pair_is_a_forward_and_a_backward, boost::unit_test::data::make(models), model) {
  const ModelShape shape = small(model, {1, 1});
  Chain alone(shape);
  Chain paired(shape);
  for (Chain* const chain : {&alone, &paired}) static_cast<void>(chain->forward(0));
  const at::Tensor output = alone.stages[0]->forward(1, {});
  const at::Tensor gradient = alone.stages[1]->backward(0, {});
  const Overlapped pair = forward_backward(*paired.stages[0], 1, {}, *paired.stages[1], 0, {});
  BOOST_TEST(same_bits(pair.output, output));
  BOOST_TEST(same_bits(pair.input_gradient, gradient));
}

BOOST_DATA_TEST_CASE(synthetic_data_depends_on_its_arguments_alone, boost::unit_test::data::make(models), model) {
  const ModelShape shape = small(model, {1});
  const auto data = synthetic_data(shape, 5);
  const at::Tensor input = data->input(3, 4);
  const at::Tensor target = data->target(3, 4);
  static_cast<void>(data->input(0, 0));
  BOOST_TEST(same_bits(data->input(3, 4), input));
  BOOST_TEST(same_bits(synthetic_data(small(model, {2, 1}), 5)->target(3, 4), target));
  BOOST_TEST(!same_bits(data->input(3, 5), input));
  BOOST_TEST(!same_bits(data->input(4, 4), input));
  BOOST_TEST(!same_bits(synthetic_data(shape, 6)->input(3, 4), input));
  BOOST_TEST((input.sizes() == target.sizes()));
  if (model != "mlp") {
    BOOST_TEST(at::equal(input.slice(1, 1), target.slice(1, 0, shape.sequence - 1)));
    BOOST_TEST(input.min().item<std::int64_t>() >= 0);
    BOOST_TEST(input.max().item<std::int64_t>() < shape.vocabulary);
  } else {
    BOOST_TEST(at::equal(input.slice(1, 0, shape.hidden - 1), target.slice(1, 1)));
  }
}

BOOST_AUTO_TEST_CASE(token_file_goes_round_and_round) {
  std::vector<std::int32_t> tokens(20);
  std::iota(tokens.begin(), tokens.end(), 0);
  const TemporaryFile file(int32s(tokens));
  ModelShape shape = small("gpt", {1});  // sequences of 7 tokens: two samples, then round again
  shape.batch = 1;
  const auto data = token_file(shape, file.path, 3);
  BOOST_TEST(at::equal(data->input(0, 0), at::arange(0, 7).view({1, 7})));
  BOOST_TEST(at::equal(data->target(0, 0), at::arange(1, 8).view({1, 7})));
  BOOST_TEST(at::equal(data->input(0, 1), at::arange(7, 14).view({1, 7})));
  BOOST_TEST(at::equal(data->input(0, 2), data->input(0, 0)));
  BOOST_TEST(at::equal(data->input(1, 0), data->input(0, 1)));  // sample 3
  shape.batch = 2;
  BOOST_TEST(at::equal(token_file(shape, file.path, 3)->target(0, 0), at::arange(1, 15).view({2, 7})));
}

BOOST_AUTO_TEST_CASE(token_files_that_do_not_fit) {
  const ModelShape shape = small("gpt", {1});
  const auto refused = [&shape](const std::string& bytes) {
    const TemporaryFile file(bytes);
    const std::string what = refusal([&] { static_cast<void>(token_file(shape, file.path, 1)); });
    BOOST_TEST(what.starts_with(file.path + ": "));
    return what.substr(std::min(what.size(), file.path.size() + 2));
  };
  BOOST_TEST(refused(int32s({1, 2, 3})) ==
             "has 3 tokens, but a sample takes 8 (a sequence, and the token that "
             "follows it); lower --sequence, or give a longer file");
  BOOST_TEST(refused("").starts_with("has 0 tokens"));
  BOOST_TEST(refused("abcdefghi").starts_with("has 9 bytes, which is no whole number of int32 tokens"));
  BOOST_TEST(refused(int32s({0, 1, 2, 3, 4, 5, 6, 31, 8}))
                 .starts_with("token 7 is 31, but the vocabulary has 31, from 0 to 30; raise --vocabulary"));
  BOOST_TEST(refused(int32s({0, 1, 2, 3, 4, 5, 6, 7, -1})).starts_with("token 8 is -1"));
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(shape, "/nowhere/tokens", 1)); }) ==
             "/nowhere/tokens: cannot be opened: No such file or directory");
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(shape, "/", 1)); }).starts_with("/: is not a regular file"));
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(small("mlp", {1}), "t", 1)); }) ==
             "t: the model mlp reads no tokens; use gpt or moe, or leave the file out");
}

BOOST_AUTO_TEST_CASE(layers_are_split_evenly) {
  BOOST_TEST(split_evenly(8, 3) == (std::vector{3, 3, 2}), boost::test_tools::per_element());
  BOOST_TEST(split_evenly(8, 4) == (std::vector{2, 2, 2, 2}), boost::test_tools::per_element());
  BOOST_TEST(split_evenly(2, 4) == (std::vector{1, 1, 0, 0}), boost::test_tools::per_element());
  BOOST_TEST(split_evenly(0, 1) == (std::vector{0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(shapes_that_cannot_be) {
  const auto refused = [](const std::function<void(ModelShape&)>& change, const std::string& model = "gpt") {
    ModelShape shape = model == "timed" ? timed_shape() : small(model, {1, 1});
    change(shape);
    const Feed feed;
    return refusal([&] { static_cast<void>(make_stage(shape, 0, feed)); });
  };
  BOOST_TEST(refused([](ModelShape& shape) { shape.heads = 5; }) ==
             "gpt: a hidden size of 24 cannot be shared by 5 heads; make it a multiple of the heads");
  BOOST_TEST(refused([](ModelShape& shape) { shape.heads = 0; }) ==
             "the number of heads is 0; it must be from 1 to "
             "1073741824");
  BOOST_TEST(refused([](ModelShape& shape) { shape.batch = -1; }).starts_with("the number of samples"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.layers = {}; }).starts_with("the model has no stage"));
  BOOST_TEST(refused([](ModelShape& shape) {
               shape.layers = {1, -2};
             }) ==
             "stage 1 has -2 layers; it must be 0 or "
             "more");
  BOOST_TEST(refused([](ModelShape& shape) { shape.model = "gtp"; }) ==
             "there is no model 'gtp'; there are mlp, gpt, moe, timed, empty");
  BOOST_TEST(refused([](ModelShape& shape) { shape.recompute = Recompute::attention; }, "mlp") ==
             "mlp has no attention to recompute; leave out --recompute attention, or use --model gpt");
  BOOST_TEST(refused([](ModelShape& shape) { shape.recompute = Recompute::attention; }, "timed")
                 .starts_with("timed has no attention"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.tied = true; }, "mlp") ==
             "mlp has no token embedding to tie the head to; leave out --tied, or use --model gpt");
  BOOST_TEST(refused([](ModelShape& shape) { shape.norm = NormKind::rms; }, "mlp") ==
             "mlp has no norm; leave out --norm, or use --model gpt");
  BOOST_TEST(refused([](ModelShape& shape) { shape.costs.stages.resize(3); }, "timed") ==
             "timed: costs are given for 3 stages, but a chain has 2; give one for all, or one for each");
  BOOST_TEST(refused(
                 [](ModelShape& shape) {
                   shape.costs.speed = {1, 2};
                 },
                 "timed")
                 .starts_with("timed: a stage takes the same time on every rank"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
