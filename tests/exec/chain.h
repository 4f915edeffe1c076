// The stages of one chain, run by hand, and how their results are compared.
#pragma once

#include <ATen/core/Tensor.h>

#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {

// Sizes of which no two are the same by chance.
[[nodiscard]] inline ModelShape small(const std::string& model, std::vector<int> layers) {
  ModelShape shape;
  shape.model = model;
  shape.hidden = 24;
  shape.heads = 3;
  shape.sequence = 7;
  shape.vocabulary = 31;
  shape.batch = 3;
  shape.layers = std::move(layers);
  shape.precision = Precision::float64;
  shape.seed = 11;
  shape.loss_scale = 1.0 / 6;
  return shape;
}

// F&B of two stages on the host: `ahead` does it.
[[nodiscard]] inline Overlapped forward_backward(Stage& ahead, std::uint32_t forward_micro_batch, Tensors inputs,
                                                 Stage& back, std::uint32_t backward_micro_batch, Tensors gradients) {
  return ahead.overlapped_forward_backward(forward_micro_batch, std::move(inputs), back, backward_micro_batch,
                                           std::move(gradients), {host_device(), {}, {}});
}

// Two stages that sleep, each pass another time.
[[nodiscard]] inline ModelShape timed_shape() {
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

// What the InputError says that `call` throws.
[[nodiscard]] inline std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no refusal";
}

// The one that a stage of one tensor gives; undefined: none, as at the ends of a chain.
[[nodiscard]] inline at::Tensor only(const Tensors& tensors) {
  BOOST_TEST(tensors.size() <= 1U);
  return tensors.empty() ? at::Tensor() : tensors[0];
}

// Of what is there.
[[nodiscard]] inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined() || a.sizes() != b.sizes() || a.dtype() != b.dtype()) return false;
  const at::Tensor x = a.detach().contiguous();
  const at::Tensor y = b.detach().contiguous();
  return std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
}

struct Chain {
  explicit Chain(const ModelShape& shape) : data(synthetic_data(shape, 5)), feed{data.get(), 2, 10} {
    for (int stage = 0; stage < static_cast<int>(shape.layers.size()); ++stage) {
      stages.push_back(make_stage(shape, stage, feed));
    }
  }

  // Each through all stages.
  at::Tensor forward(std::uint32_t micro_batch) {
    Tensors x;
    for (const auto& stage : stages) x = stage->forward(micro_batch, std::move(x));
    return only(x);
  }
  void backward(std::uint32_t micro_batch) { go_back(&Stage::backward, micro_batch); }
  void backward_input(std::uint32_t micro_batch) { go_back(&Stage::backward_input, micro_batch); }
  void backward_weight(std::uint32_t micro_batch) {
    for (const auto& stage : stages) stage->backward_weight(micro_batch);
  }

  void add_up_gradients() {
    for (const auto& stage : stages) stage->add_up_gradients();
  }

  [[nodiscard]] std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (const auto& stage : stages) {
      for (const at::Tensor& parameter : stage->parameters()) all.push_back(parameter);
    }
    return all;
  }
  [[nodiscard]] std::map<std::string, at::Tensor> named_parameters() const {
    std::map<std::string, at::Tensor> all;
    for (const auto& stage : stages) {
      for (const NamedTensor& each : stage->named_parameters()) all.emplace(each.name, each.tensor);
    }
    return all;
  }
  [[nodiscard]] std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all;
    for (const at::Tensor& parameter : parameters()) all.push_back(parameter.grad());
    return all;
  }

  std::unique_ptr<Data> data;
  Feed feed;
  std::vector<std::unique_ptr<Stage>> stages;

 private:
  void go_back(Tensors (Stage::*pass)(std::uint32_t, Tensors), std::uint32_t micro_batch) {
    Tensors gradients;
    for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
      gradients = ((**stage).*pass)(micro_batch, std::move(gradients));
    }
    BOOST_TEST(gradients.empty());
  }
};

}  // namespace dualpipe::test
