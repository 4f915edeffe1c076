// Stages that pass three tensors on: hidden states, which have a gradient, token ids, which can have none, and a mask,
// which needs none. And the same model in one piece, by plain autograd.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/pipeline/pipeline.h"
#include "dualpipe/exec/stage/autograd_stage.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::test {

constexpr std::int64_t triple_width = 6;
constexpr std::int64_t triple_vocabulary = 9;

// The parameters of a stage: those of stages with the same weights are the same.
struct TripleLayer {
  explicit TripleLayer(int weights)
      : weight(values(weights + 1, {triple_width, triple_width})),
        table(values(weights + 11, {triple_vocabulary, triple_width})) {}

  static at::Tensor values(int seed, at::IntArrayRef sizes) {
    std::int64_t numel = 1;
    for (const std::int64_t size : sizes) numel *= size;
    return at::sin(at::arange(numel, at::kDouble) * (0.37 * seed)).view(sizes).set_requires_grad(true);
  }

  // `deferred`: null: by plain autograd.
  [[nodiscard]] at::Tensor operator()(const Tensors& in, detail::stage::WeightGradients* deferred = nullptr) const {
    namespace layers = detail::stage::deferred;
    const at::Tensor mixed = deferred ? layers::linear(*deferred, in[0], weight, {}) : at::linear(in[0], weight);
    const at::Tensor added = deferred ? layers::embedding(*deferred, table, in[1]) : at::embedding(table, in[1]);
    return at::tanh(mixed) * in[2].detach() + added;
  }

  at::Tensor weight;
  at::Tensor table;
};

[[nodiscard]] inline at::Tensor triple_loss(const at::Tensor& output, const at::Tensor& target) {
  return at::mse_loss(output, target);
}

class TripleStage final : public detail::stage::AutogradStage {
 public:
  TripleStage(const Placement& placement, int stage, Recompute recompute = Recompute::none)
      : AutogradStage(1, recompute),
        is_last_(!placement.next(stage)),
        layer_(placement.weights_of[static_cast<std::size_t>(stage)]) {}

  // What it does not change it passes on as it is: outputs that are views of inputs.
  Tensors compute(std::uint32_t /*micro_batch*/, const Tensors& inputs) override {
    const at::Tensor output = layer_(inputs, &weight_gradients());
    if (is_last_) return {output};
    return {output, inputs[1], inputs[2]};
  }
  std::vector<NamedTensor> named_parameters() override { return {{"weight", layer_.weight}, {"table", layer_.table}}; }

 private:
  bool is_last_;
  TripleLayer layer_;
};

// What the micro-batch in a place of a step takes.
[[nodiscard]] inline Tensors triple_input(std::size_t place, std::int64_t rows = 3) {
  const auto seed = static_cast<int>(place);
  const at::Tensor ids = at::arange(rows, at::kLong).mul(seed + 2).remainder(triple_vocabulary);
  return {TripleLayer::values(seed + 21, {rows, triple_width}).detach(), ids,
          TripleLayer::values(seed + 31, {rows, 1}).detach()};
}
[[nodiscard]] inline Tensors triple_target(std::size_t place, std::int64_t rows = 3) {
  return {TripleLayer::values(static_cast<int>(place) + 41, {rows, triple_width}).detach()};
}

// A step of the program. `rows`: of each micro-batch; of the last one of a chain `last_rows`.
[[nodiscard]] inline StepInput triple_step(const Program& program, std::int64_t rows = 3, std::int64_t last_rows = 3) {
  StepInput input;
  const std::uint32_t count = program.schedule.micro_batches;
  for (std::size_t place = 0; place < program.schedule.total_micro_batches(); ++place) {
    const std::int64_t own_rows = place % count + 1 == count ? last_rows : rows;
    input.inputs.push_back(triple_input(place, own_rows));
    input.targets.push_back(triple_target(place, own_rows));
  }
  input.criterion = [](const Tensors& outputs, const Tensors& targets) { return triple_loss(outputs[0], targets[0]); };
  input.loss_scale = 1.0 / 8;
  return input;
}

// The losses by place, and the gradients by weights, each of their two parameters.
struct TripleResult {
  Tensors losses;
  std::vector<Tensors> gradients;
};

// Micro-batch by micro-batch through the whole model. The gradients of each chain's copy are added up by themselves,
// then those of the chains, as a pipeline does it.
[[nodiscard]] inline TripleResult triple_in_one_piece(const Program& program, const StepInput& input) {
  const Placement& placement = program.schedule.placement;
  TripleResult result;
  for (int chain = 0; chain < placement.chains(); ++chain) {
    const auto begin = placement.chain_begin[static_cast<std::size_t>(chain)];
    const auto end = placement.chain_begin[static_cast<std::size_t>(chain) + 1];
    std::vector<TripleLayer> layers;
    for (auto stage = begin; stage < end; ++stage) layers.emplace_back(placement.weights_of[stage]);
    for (std::uint32_t i = 0; i < program.schedule.micro_batches; ++i) {
      const std::size_t place = static_cast<std::size_t>(chain) * program.schedule.micro_batches + i;
      Tensors x = input.inputs[place];
      for (const TripleLayer& layer : layers) x[0] = layer(x);
      const at::Tensor loss = triple_loss(x[0], input.targets[place][0]);
      (loss * input.loss_scale).backward();
      result.losses.push_back(loss.detach());
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto weights = static_cast<std::size_t>(placement.weights_of[begin + i]);
      if (result.gradients.size() <= weights) result.gradients.resize(weights + 1);
      Tensors& sum = result.gradients[weights];
      if (sum.empty()) {
        sum = {layers[i].weight.grad(), layers[i].table.grad()};
      } else {
        sum[0] = sum[0] + layers[i].weight.grad();
        sum[1] = sum[1] + layers[i].table.grad();
      }
    }
  }
  return result;
}

// One rank's step. Returns what is not as in one piece, the first of it, or nothing.
[[nodiscard]] inline std::string triple_flaw(const Program& program, int rank, Transport& transport,
                                             const StepInput& input, Recompute recompute = Recompute::none) {
  const Placement& placement = program.schedule.placement;
  std::vector<std::unique_ptr<TripleStage>> stages(placement.rank_of.size());
  std::vector<Stage*> by_number(stages.size());
  for (const int stage : placement.stages_on(rank)) {
    const auto number = static_cast<std::size_t>(stage);
    stages[number] = std::make_unique<TripleStage>(placement, stage, recompute);
    by_number[number] = stages[number].get();
  }
  RankRecord record;
  const StepResult got = Pipeline(program, rank, by_number, transport, record).step(input);
  const TripleResult expected = triple_in_one_piece(program, input);
  for (std::size_t place = 0; place < got.losses.size(); ++place) {
    const std::size_t chain = place / program.schedule.micro_batches;
    const bool is_here = placement.rank_of[placement.chain_begin[chain + 1] - 1U] == rank;
    if (got.losses[place].defined() != is_here) return "loss " + std::to_string(place) + " on another rank";
    if (is_here && !at::equal(got.losses[place], expected.losses[place])) return "loss " + std::to_string(place);
  }
  for (const int stage : placement.stages_on(rank)) {
    const auto number = static_cast<std::size_t>(stage);
    const Tensors& of_weights = expected.gradients[static_cast<std::size_t>(placement.weights_of[number])];
    for (std::size_t i = 0; i < of_weights.size(); ++i) {
      const at::Tensor gradient = stages[number]->parameters()[i].grad();
      if (!gradient.defined() || !at::equal(gradient, of_weights[i])) {
        return "gradient " + std::to_string(i) + " of stage " + std::to_string(stage);
      }
    }
  }
  return "";
}

}  // namespace dualpipe::test
