#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/model/routing.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/chain.h"

namespace dualpipe::test {

using detail::model::combine;
using detail::model::dispatch;
using detail::model::expert_capacity;
using detail::model::route;
using detail::model::Routing;
using detail::replay::MemoryMeter;

namespace {

namespace data = boost::unit_test::data;
using test::same_bits;

// Where the one has none, nor has the other.
bool same_bits(const Tensors& a, const Tensors& b) {
  return std::ranges::equal(
      a, b, [](const at::Tensor& x, const at::Tensor& y) { return same_bits(x, y) || (!x.defined() && !y.defined()); });
}

at::Tensor random(at::IntArrayRef sizes, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(sizes, at::kDouble);
}

// --- routing, beside loops

struct Route {
  std::int64_t tokens, experts, top_k, capacity;
};
std::ostream& operator<<(std::ostream& out, const Route& r) {
  return out << r.tokens << " tokens, " << r.experts << " experts, top " << r.top_k << ", " << r.capacity << " places";
}

// Which expert's place each choice of each token gets: [choice][token], -1 for none.
std::vector<std::vector<std::int64_t>> places(const at::Tensor& logits, const Route& route) {
  std::vector<std::vector<std::int64_t>> slots;
  std::vector<std::int64_t> taken(static_cast<std::size_t>(route.experts));
  for (std::int64_t choice = 0; choice < route.top_k; ++choice) {
    auto& of_choice = slots.emplace_back();
    for (std::int64_t token = 0; token < route.tokens; ++token) {
      std::vector<std::int64_t> order(static_cast<std::size_t>(route.experts));
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, [&](std::int64_t a, std::int64_t b) {
        return logits[token][a].item<double>() > logits[token][b].item<double>();
      });
      const std::int64_t expert = order[static_cast<std::size_t>(choice)];
      const std::int64_t place = taken[static_cast<std::size_t>(expert)]++;
      of_choice.push_back(place < route.capacity ? expert * route.capacity + place : -1);
    }
  }
  return slots;
}

const std::vector<Route> routes = {{1, 1, 1, 1}, {5, 3, 1, 2}, {8, 4, 2, 4}, {8, 4, 2, 1},
                                   {7, 5, 3, 2}, {6, 2, 2, 6}, {9, 4, 4, 3}, {16, 8, 2, 5}};

BOOST_AUTO_TEST_SUITE(exec_moe)

BOOST_DATA_TEST_CASE(tokens_get_the_places_of_their_choices, data::make(routes), shape) {
  const at::Tensor logits = random({shape.tokens, shape.experts}, 3);
  const Routing routing = route(logits, shape.top_k, shape.capacity);
  const auto expected = places(logits, shape);
  const std::int64_t slots = shape.experts * shape.capacity;
  std::map<std::int64_t, std::int64_t> taken;
  const at::Tensor probabilities = at::softmax(logits, -1);
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    double sum = 0;  // over the chosen experts
    for (std::int64_t choice = 0; choice < shape.top_k; ++choice) {
      sum += std::get<0>(probabilities[token].sort(-1, true))[choice].item<double>();
    }
    for (std::int64_t choice = 0; choice < shape.top_k; ++choice) {
      const std::int64_t slot = expected[static_cast<std::size_t>(choice)][static_cast<std::size_t>(token)];
      const double weight = std::get<0>(probabilities[token].sort(-1, true))[choice].item<double>() / sum;
      BOOST_TEST(routing.slot[choice][token].item<std::int64_t>() == (slot < 0 ? slots : slot));
      BOOST_TEST(routing.weights[choice][token].item<double>() == (slot < 0 ? 0 : weight),
                 boost::test_tools::tolerance(1e-13));
      if (slot >= 0) taken[slot] = choice * shape.tokens + token;
    }
  }
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    const auto found = taken.find(slot);
    BOOST_TEST(routing.assignment[slot].item<std::int64_t>() ==
               (found == taken.end() ? shape.top_k * shape.tokens : found->second));
  }
}

// Against the same, written with autograd's own indexing.
BOOST_DATA_TEST_CASE(dispatch_and_combine_have_the_right_gradients, data::make(routes), shape) {
  constexpr std::int64_t hidden = 3;
  const at::Tensor logits = random({shape.tokens, shape.experts}, 4);
  const at::Tensor x = random({shape.tokens, hidden}, 5).set_requires_grad(true);
  const at::Tensor scale = random({shape.experts * shape.capacity, hidden}, 6);  // what the experts do
  Routing routing = route(logits, shape.top_k, shape.capacity);
  routing.weights = routing.weights.detach().set_requires_grad(true);
  const at::Tensor output = combine(dispatch(x, routing) * scale, routing);

  const at::Tensor plain_x = x.detach().clone().set_requires_grad(true);
  const at::Tensor plain_weights = routing.weights.detach().clone().set_requires_grad(true);
  const auto slots = places(logits, shape);
  Tensors rows;
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    at::Tensor row = at::zeros({hidden}, at::kDouble);
    for (std::int64_t choice = 0; choice < shape.top_k; ++choice) {
      const std::int64_t slot = slots[static_cast<std::size_t>(choice)][static_cast<std::size_t>(token)];
      if (slot >= 0) row = row + plain_weights[choice][token] * plain_x[token] * scale[slot];
    }
    rows.push_back(row);
  }
  const at::Tensor plain = at::stack(rows);
  BOOST_TEST(at::allclose(output, plain, 1e-13, 1e-14));
  const at::Tensor gradient = random({shape.tokens, hidden}, 7);
  (output * gradient).sum().backward();
  (plain * gradient).sum().backward();
  BOOST_TEST(at::allclose(x.grad(), plain_x.grad(), 1e-13, 1e-14));
  const at::Tensor has_place = routing.slot.lt(shape.experts * shape.capacity);
  BOOST_TEST(at::allclose(routing.weights.grad() * has_place, plain_weights.grad(), 1e-13, 1e-14));
}

BOOST_AUTO_TEST_CASE(capacities_are_rounded_up) {
  BOOST_TEST(expert_capacity(1, 8, 2, 4) == 4);
  BOOST_TEST(expert_capacity(1.25, 8, 2, 4) == 5);
  BOOST_TEST(expert_capacity(1.01, 8, 2, 4) == 5);
  BOOST_TEST(expert_capacity(1, 3, 1, 8) == 1);
  BOOST_TEST(expert_capacity(1e-9, 100, 2, 8) == 1);
  BOOST_TEST(expert_capacity(1e300, 100, 8, 1) == 100);
}

// --- the model

ModelShape small(std::vector<int> layers) {
  ModelShape shape = test::small("moe", std::move(layers));
  shape.hidden = 12;
  shape.experts = 5;
  shape.top_k = 2;
  shape.expert_hidden = 10;
  return shape;
}

// The model once more: plain autograd, token by token and expert by expert.
struct Plain {
  const ModelShape& shape;
  std::map<std::string, at::Tensor> parameters;

  [[nodiscard]] at::Tensor operator[](const std::string& name) const { return parameters.at(name); }
  [[nodiscard]] at::Tensor linear(const at::Tensor& x, const std::string& name) const {
    const auto bias = parameters.find(name + ".bias");
    return at::linear(x, (*this)[name + ".weight"],
                      bias == parameters.end() ? std::nullopt : std::optional(bias->second));
  }
  [[nodiscard]] at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    const at::Tensor weight = (*this)[name + ".weight"];
    if (shape.norm == NormKind::rms) return at::rms_norm(x, {shape.hidden}, weight, 1e-5);
    return at::layer_norm(x, {shape.hidden}, weight, (*this)[name + ".bias"], 1e-5);
  }

  [[nodiscard]] at::Tensor attention(const at::Tensor& x, const std::string& block) const {
    const std::int64_t size = shape.hidden / shape.heads;
    const at::Tensor heads = linear(norm(x, block + ".attention_norm"), block + ".query_key_value")
                                 .view({shape.batch, shape.sequence, 3, shape.heads, size})
                                 .permute({2, 0, 3, 1, 4});
    const at::Tensor hidden_future = at::ones({shape.sequence, shape.sequence}, at::kBool).tril().logical_not();
    const at::Tensor scores = heads[0].matmul(heads[1].transpose(-1, -2)) / std::sqrt(static_cast<double>(size));
    const at::Tensor mixed = at::softmax(scores.masked_fill(hidden_future, -1e300), -1).matmul(heads[2]);
    return linear(mixed.transpose(1, 2).reshape({shape.batch, shape.sequence, shape.hidden}), block + ".projection");
  }

  [[nodiscard]] at::Tensor expert(const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down) const {
    const at::Tensor both = x.matmul(gate_up);
    return (at::silu(both.slice(-1, 0, shape.expert_hidden)) * both.slice(-1, shape.expert_hidden)).matmul(down);
  }

  // `refused` counts the choices for which there was no place.
  [[nodiscard]] at::Tensor experts(const at::Tensor& y, const std::string& block, int& refused) const {
    const Route route{y.size(0), shape.experts, shape.top_k,
                      expert_capacity(shape.capacity, y.size(0), shape.top_k, shape.experts)};
    const at::Tensor logits = linear(y, block + ".router");
    const at::Tensor probabilities = at::softmax(logits, -1);
    const auto chosen = std::get<1>(probabilities.topk(shape.top_k, -1));
    const auto slots = places(logits, route);
    Tensors rows;
    for (std::int64_t token = 0; token < y.size(0); ++token) {
      at::Tensor row =
          expert(y[token], (*this)[block + ".shared.gate_up.weight"].t(), (*this)[block + ".shared.down.weight"].t());
      const at::Tensor sum = probabilities[token].index_select(0, chosen[token]).sum();
      for (std::int64_t choice = 0; choice < shape.top_k; ++choice) {
        if (slots[static_cast<std::size_t>(choice)][static_cast<std::size_t>(token)] < 0) {
          ++refused;
          continue;
        }
        const std::int64_t number = chosen[token][choice].item<std::int64_t>();
        row = row + probabilities[token][number] / sum *
                        expert(y[token], (*this)[block + ".experts.gate_up.weight"][number],
                               (*this)[block + ".experts.down.weight"][number]);
      }
      rows.push_back(row);
    }
    return at::stack(rows);
  }

  [[nodiscard]] at::Tensor loss(const at::Tensor& input, const at::Tensor& target, int& refused) const {
    at::Tensor x = at::embedding((*this)["tokens.weight"], input) + (*this)["positions.weight"];
    const int blocks = std::accumulate(shape.layers.begin(), shape.layers.end(), 0);
    for (int i = 0; i < blocks; ++i) {
      const std::string block = fmt::format("blocks.{}", i);
      x = x + attention(x, block);
      x = x + experts(norm(x, block + ".experts_norm").flatten(0, 1), block, refused).view_as(x);
    }
    const at::Tensor logits = linear(norm(x, "head.norm"), shape.tied ? "tokens" : "head.logits");
    return at::cross_entropy_loss(logits.flatten(0, 1), target.flatten());
  }
};

BOOST_DATA_TEST_CASE(the_model_is_the_one_in_loops,
                     data::make({0.3, 1.0, 1.25, 9.0}) * data::make({1, 2, 5}) * data::make({false, true}), capacity,
                     top_k, tied) {
  ModelShape shape = small({1, 2});
  shape.capacity = capacity;
  shape.top_k = top_k;
  shape.tied = tied;
  shape.norm = tied ? NormKind::rms : NormKind::layer;
  if (tied) shape.layers = {3};  // one copy of what is tied
  Chain chain(shape);
  Chain other(shape);
  const Plain plain{shape, other.named_parameters()};
  int refused = 0;
  for (std::uint32_t i = 0; i < 2; ++i) {
    const at::Tensor loss = chain.forward(i);
    chain.backward(i);
    const at::Tensor expected = plain.loss(other.data->input(2, 10 + i), other.data->target(2, 10 + i), refused);
    (expected * shape.loss_scale).backward();
    BOOST_TEST(loss.item<double>() == expected.item<double>(), boost::test_tools::tolerance(1e-13));
  }
  chain.add_up_gradients();
  for (const auto& [name, parameter] : chain.named_parameters()) {
    const at::Tensor expected = plain[name].grad();
    BOOST_TEST(expected.abs().max().item<double>() > 0, name);
    BOOST_TEST(at::allclose(parameter.grad(), expected, 1e-10, 1e-14), name);
  }
  BOOST_TEST_MESSAGE(refused << " choices without a place");
  if (capacity < 1 && top_k < 5) BOOST_TEST(refused > 0);
  if (capacity > 8) BOOST_TEST(refused == 0);
}

struct Variant {
  Recompute recompute = Recompute::none;
  bool tied = false;
  NormKind norm = NormKind::layer;

  [[nodiscard]] ModelShape on(std::vector<int> layers) const {
    ModelShape shape = small(std::move(layers));
    shape.recompute = recompute;
    shape.tied = tied;
    shape.norm = norm;
    return shape;
  }
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << std::array{"kept", "full", "attention"}[static_cast<std::size_t>(variant.recompute)]
             << (variant.tied ? ", tied" : "") << (variant.norm == NormKind::rms ? ", rms" : "");
}
const std::vector<Variant> variants = {{},
                                       {Recompute::none, true, NormKind::rms},
                                       {Recompute::attention},
                                       {Recompute::full},
                                       {Recompute::full, true, NormKind::rms}};

BOOST_DATA_TEST_CASE(the_halves_of_a_backward_are_the_whole, data::make(variants) * data::make({false, true}), variant,
                     late) {
  Chain whole(variant.on({1, 2}));
  Chain halves(variant.on({1, 2}));
  for (std::uint32_t i = 0; i < 3; ++i) {
    BOOST_TEST(same_bits(whole.forward(i), halves.forward(i)));
    whole.backward(i);
    halves.backward_input(i);
    if (!late) halves.backward_weight(i);
  }
  if (late) {
    for (const at::Tensor& gradient : halves.gradients()) BOOST_TEST(!gradient.defined());
    for (std::uint32_t i = 0; i < 3; ++i) halves.backward_weight(i);
  }
  BOOST_TEST(same_bits(whole.gradients(), halves.gradients()));
}

BOOST_DATA_TEST_CASE(bits_do_not_depend_on_the_split, data::make(variants), variant) {
  if (variant.tied) return;  // then there are two copies, whose gradients are not added here
  Chain whole(Variant{Recompute::none, false, variant.norm}.on({4}));
  for (std::uint32_t i = 0; i < 2; ++i) {
    static_cast<void>(whole.forward(i));
    whole.backward(i);
  }
  for (const std::vector<int>& layers : std::vector<std::vector<int>>{{4}, {2, 2}, {1, 0, 3}, {0, 4, 0}}) {
    Chain split(variant.on(layers));
    for (std::uint32_t i = 0; i < 2; ++i) {
      static_cast<void>(split.forward(i));
      split.backward(i);
    }
    BOOST_TEST(same_bits(whole.gradients(), split.gradients()), layers.size() << " stages");
  }
}

// Each micro-batch's forward through one stage with the backward of the one before through the other.
BOOST_DATA_TEST_CASE(an_interleaved_pair_is_a_forward_and_a_backward, data::make(variants), variant) {
  for (const std::vector<int>& layers : std::vector<std::vector<int>>{{1, 1}, {2, 2}, {3, 1}, {1, 3}, {0, 2}, {2, 0}}) {
    ModelShape shape = variant.on(layers);
    Chain interleaved(shape);
    shape.interleave = false;
    Chain in_turn(shape);
    Chain by_themselves(shape);
    Tensors results;
    for (Chain* const chain : {&interleaved, &in_turn, &by_themselves}) {
      static_cast<void>(chain->forward(0));
      chain->backward(0);  // from here on each parameter has its gradient
      static_cast<void>(chain->forward(1));
      const MemoryMeter meter;
      Tensors of_chain;
      {
        const at::Tensor output = only(chain->stages[0]->forward(2, {}));
        Stage& ahead = *chain->stages[1];
        if (chain == &by_themselves) {
          of_chain.push_back(only(ahead.forward(2, {output})));
          of_chain.push_back(only(ahead.backward(1, {})));
          of_chain.push_back(only(ahead.backward(2, {})));
          of_chain.push_back(only(chain->stages[0]->forward(3, {})));
          of_chain.push_back(only(chain->stages[0]->backward(1, {of_chain[1]})));
        } else {
          of_chain.push_back(only(ahead.forward(2, {output})));
          of_chain.push_back(only(ahead.backward(1, {})));
          Overlapped pair = forward_backward(*chain->stages[0], 3, {}, ahead, 2, {});
          of_chain.push_back(only(pair.input_gradients));
          of_chain.push_back(only(pair.outputs));
          of_chain.push_back(only(chain->stages[0]->backward(1, {of_chain[1]})));
        }
        // And the other way round: the forward ahead in the last stage.
        const at::Tensor input = of_chain[3];
        if (chain == &by_themselves) {
          of_chain.push_back(only(ahead.forward(3, {input})));
          of_chain.push_back(only(chain->stages[0]->backward(2, {of_chain[2]})));
        } else {
          Overlapped pair = forward_backward(ahead, 3, {input}, *chain->stages[0], 2, {of_chain[2]});
          of_chain.push_back(only(pair.outputs));
          of_chain.push_back(only(pair.input_gradients));
        }
        of_chain.push_back(only(ahead.backward(3, {})));
        of_chain.push_back(only(chain->stages[0]->backward(3, {of_chain.back()})));
      }
      if (results.empty()) results = of_chain;
      BOOST_TEST(same_bits(of_chain, results));
      BOOST_TEST(same_bits(chain->gradients(), interleaved.gradients()));
    }
  }
}

BOOST_DATA_TEST_CASE(a_pair_leaves_nothing_behind, data::make(variants), variant) {
  Chain chain(variant.on({2, 1}));
  static_cast<void>(chain.forward(0));
  chain.backward(0);
  const MemoryMeter meter;
  {
    static_cast<void>(chain.forward(1));
    const at::Tensor gradient = only(chain.stages[1]->backward(1, {}));
    Overlapped first = forward_backward(*chain.stages[0], 2, {}, *chain.stages[0], 1, {gradient});
    BOOST_TEST(meter.held() > 0);
    BOOST_TEST(first.input_gradients.empty());
    static_cast<void>(chain.stages[1]->forward(2, first.outputs));
    chain.backward(2);
  }
  BOOST_TEST(meter.held() == 0);
}

BOOST_AUTO_TEST_CASE(recomputation_keeps_the_input_alone) {
  const auto held_after_forward = [](Recompute recompute) {
    Chain chain(Variant{recompute}.on({1, 2, 1}));
    const at::Tensor input = only(chain.stages[0]->forward(0, {}));
    const MemoryMeter meter;
    static_cast<void>(chain.stages[1]->forward(0, {input.clone()}));
    return meter.held();
  };
  const Bytes of_input = 3 * 7 * 12 * 8;
  BOOST_TEST(held_after_forward(Recompute::full) == of_input);
  BOOST_TEST(held_after_forward(Recompute::attention) < held_after_forward(Recompute::none));
}

BOOST_AUTO_TEST_CASE(evaluation_keeps_nothing) {
  Chain chain(small({1, 1}));
  const at::Tensor with_gradients = chain.forward(0);
  const c10::NoGradGuard evaluation;
  const MemoryMeter meter;
  for (std::uint32_t i = 1; i < 3; ++i) static_cast<void>(chain.forward(i));
  BOOST_TEST(meter.held() == 0);
  BOOST_TEST(same_bits(chain.forward(0), with_gradients));
}

BOOST_AUTO_TEST_CASE(frozen_parameters_get_no_gradient) {
  Chain chain(small({1, 1}));
  bool freeze = false;
  for (const auto& [name, parameter] : chain.named_parameters()) parameter.set_requires_grad(freeze = !freeze);
  static_cast<void>(chain.forward(0));
  chain.backward_input(0);
  chain.backward_weight(0);
  for (const auto& [name, parameter] : chain.named_parameters()) {
    BOOST_TEST(parameter.grad().defined() == parameter.requires_grad(), name);
  }
}

BOOST_AUTO_TEST_CASE(training_lowers_the_loss) {
  ModelShape shape = small({1, 1});
  shape.precision = Precision::float32;
  shape.batch = 8;
  shape.loss_scale = 1;
  Chain chain(shape);
  std::vector<double> losses;
  for (chain.feed.step = 0; chain.feed.step < 80; ++chain.feed.step) {
    losses.push_back(chain.forward(0).item<double>());
    chain.backward(0);
    const c10::NoGradGuard update;
    for (auto [name, parameter] : chain.named_parameters()) {
      parameter.sub_(parameter.grad(), 0.3);
      parameter.mutable_grad().reset();
    }
  }
  BOOST_TEST_MESSAGE(losses.front() << " to " << losses.back());
  BOOST_TEST(losses.back() < 0.8 * losses.front());
}

BOOST_AUTO_TEST_CASE(shapes_that_cannot_be) {
  const auto refused = [](const std::function<void(ModelShape&)>& change) -> std::string {
    ModelShape shape = small({1, 1});
    change(shape);
    const Feed feed;
    try {
      static_cast<void>(make_stage(shape, 0, feed));
    } catch (const InputError& error) {
      return error.what();
    }
    return "no refusal";
  };
  BOOST_TEST(refused([](ModelShape&) {}) == "no refusal");
  BOOST_TEST(refused([](ModelShape& shape) { shape.top_k = 6; }) ==
             "moe: a token cannot go to 6 of 5 experts; lower --top-k, or raise --experts");
  BOOST_TEST(refused([](ModelShape& shape) { shape.heads = 5; }) ==
             "moe: a hidden size of 12 cannot be shared by 5 heads; make it a multiple of the heads");
  BOOST_TEST(refused([](ModelShape& shape) { shape.capacity = 0; }).starts_with("moe: the capacity of an expert is 0"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.capacity = std::nan(""); }).starts_with("moe: the capacity"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.experts = 0; }).starts_with("the number of experts is 0"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.top_k = 0; }).starts_with("the number of experts of a token is 0"));
  BOOST_TEST(refused([](ModelShape& shape) { shape.expert_hidden = -1; }).starts_with("the hidden size of an expert"));
  BOOST_TEST(refused([](ModelShape& shape) {
               shape.model = "gpt";
               shape.interleave = false;
             }) == "gpt has no parts to interleave; leave out --no-interleave, or use --model moe");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
