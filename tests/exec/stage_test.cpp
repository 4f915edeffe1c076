#include "dualpipe/exec/stage/stage.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/replay/memory.h"
#include "tests/exec/chain.h"
#include "tests/exec/training.h"
#include "tests/thinned.h"

namespace dualpipe {

using detail::replay::MemoryMeter;

namespace {

using test::Chain;
using test::forward_backward;
using test::only;
using test::refusal;
using test::same_bits;
using test::small;
using test::thinned;
using test::timed_shape;

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
const std::vector<Precision> all_types = {Precision::float32, Precision::float64, Precision::bfloat16};

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
  static_cast<void>(stage.forward(0, {input}));
  static_cast<void>(stage.backward(0, {input}));

  const MemoryMeter meter;
  const std::int64_t row = shape.batch * shape.hidden * 8;  // bytes of one boundary tensor
  static_cast<void>(stage.forward(0, {input}));
  BOOST_TEST(meter.held() == 2 * 4 * row);  // both sides of the GELU; the input is the caller's
  static_cast<void>(stage.backward_input(0, {input}));
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
  const at::Tensor input = only(chain.stages[0]->forward(0, {}));
  const at::Tensor gradient = at::ones_like(input);
  static_cast<void>(stage.forward(0, {input}));  // from here on each parameter has its gradient
  static_cast<void>(stage.backward(0, {gradient}));
  HeldBytes held;
  const MemoryMeter meter;
  static_cast<void>(stage.forward(0, {input.clone()}));
  held.after_forward = meter.held();
  static_cast<void>(stage.backward_input(0, {gradient}));
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
  const at::Tensor output = only(chain.stages[0]->forward(0, {}));
  BOOST_TEST(!output.requires_grad());
  const at::Tensor loss = only(chain.stages[1]->forward(0, {output}));
  BOOST_TEST(!loss.requires_grad());
  BOOST_TEST(loss.dim() == 0);
  const at::Tensor gradient = only(chain.stages[1]->backward(0, {}));
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

BOOST_AUTO_TEST_CASE(frozen_parameters_get_no_gradient) {
  Chain chain(small("gpt", {1, 1}));
  const Tensors parameters = chain.parameters();
  for (std::size_t i = 0; i < parameters.size(); i += 2) parameters[i].set_requires_grad(false);
  static_cast<void>(chain.forward(0));
  chain.backward_input(0);
  chain.backward_weight(0);
  for (std::size_t i = 0; i < parameters.size(); ++i) BOOST_TEST(parameters[i].grad().defined() == (i % 2 == 1));
}

BOOST_DATA_TEST_CASE(a_pair_is_a_forward_and_a_backward, boost::unit_test::data::make(models), model) {
  const ModelShape shape = small(model, {1, 1});
  Chain alone(shape);
  Chain paired(shape);
  for (Chain* const chain : {&alone, &paired}) static_cast<void>(chain->forward(0));
  const at::Tensor output = only(alone.stages[0]->forward(1, {}));
  const at::Tensor gradient = only(alone.stages[1]->backward(0, {}));
  const Overlapped pair = forward_backward(*paired.stages[0], 1, {}, *paired.stages[1], 0, {});
  BOOST_TEST(same_bits(only(pair.outputs), output));
  BOOST_TEST(same_bits(only(pair.input_gradients), gradient));
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
             "there is no model 'gtp'; there are gpt, moe, mlp, timed, empty");
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
