#include "dualpipe/exec/model/routing.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dualpipe::detail::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The token of each slot; of an empty one the first.
at::Tensor tokens_of(const at::Tensor& assignment, std::int64_t tokens) { return assignment.remainder(tokens); }

at::Tensor spread(const at::Tensor& tokens, const at::Tensor& assignment) {
  return tokens.index_select(0, tokens_of(assignment, tokens.size(0)));
}

// A slot that there is, also for those that have none.
at::Tensor some_slot(const at::Tensor& slot, std::int64_t slots) { return slot.clamp_max(slots - 1); }

// For each token the sum over its choices of weight * row. [K, T], [S, hidden] to [T, hidden].
at::Tensor weighted_sum(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& slot) {
  const at::Tensor existing = some_slot(slot, rows.size(0));
  at::Tensor sum;
  for (std::int64_t choice = 0; choice < slot.size(0); ++choice) {
    const at::Tensor weighted = rows.index_select(0, existing[choice]).mul_(weights[choice].unsqueeze(1));
    sum = sum.defined() ? sum.add_(weighted) : weighted;
  }
  return sum;
}

struct Dispatch : torch::autograd::Function<Dispatch> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& tokens, const at::Tensor& slot,
                            const at::Tensor& assignment) {
    context->save_for_backward({slot});
    return spread(tokens, assignment);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const at::Tensor slot = context->get_saved_variables()[0];
    const at::Tensor& gradient = output_gradients[0];
    const at::Tensor has_place = slot.lt(gradient.size(0)).to(gradient.scalar_type());
    return {weighted_sum(gradient, has_place, slot), {}, {}};
  }
};

struct Combine : torch::autograd::Function<Combine> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& slots, const at::Tensor& weights,
                            const at::Tensor& slot, const at::Tensor& assignment) {
    context->save_for_backward({slots, weights, slot, assignment});
    return weighted_sum(slots, weights, slot);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& slots = saved[0];
    const at::Tensor& weights = saved[1];
    const at::Tensor& assignment = saved[3];
    const at::Tensor& gradient = output_gradients[0];

    at::Tensor of_slots;
    if (context->needs_input_grad(0)) {
      const at::Tensor weight_of_slot = at::constant_pad_nd(weights.flatten(), {0, 1}).index_select(0, assignment);
      of_slots = spread(gradient, assignment).mul_(weight_of_slot.unsqueeze(1));
    }
    at::Tensor of_weights;
    if (context->needs_input_grad(1)) {
      const at::Tensor existing = some_slot(saved[2], slots.size(0));
      std::vector<at::Tensor> of_choices;
      for (std::int64_t choice = 0; choice < existing.size(0); ++choice) {
        of_choices.push_back(slots.index_select(0, existing[choice]).mul_(gradient).sum(1));
      }
      of_weights = at::stack(of_choices);
    }
    return {of_slots, of_weights, {}, {}};
  }
};

// By expert, [K * T] in the order of the choices, to the slot of each: S where there is none.
at::Tensor give_places(const at::Tensor& expert, std::int64_t experts, std::int64_t capacity) {
  const at::Tensor every_expert = at::arange(experts, expert.options());
  const at::Tensor is_chosen = expert.unsqueeze(1).eq(every_expert);  // [K * T, experts]
  const at::Tensor place = is_chosen.cumsum(0, at::kLong).mul_(is_chosen).sum(1).sub_(1);
  return at::where(place.lt(capacity), expert * capacity + place, experts * capacity);
}

// The inverse: no two have the same slot, but those that have none, whose row is cut off.
at::Tensor taken_by(const at::Tensor& slot, std::int64_t slots) {
  const std::int64_t assignments = slot.numel();
  return at::full({slots + 1}, assignments, slot.options())
      .scatter_(0, slot, at::arange(assignments, slot.options()))
      .slice(0, 0, slots);
}

}  // namespace

std::int64_t expert_capacity(double factor, std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
  const double even = static_cast<double>(tokens) * static_cast<double>(top_k) / static_cast<double>(experts);
  const double wanted = std::clamp(std::ceil(factor * even), 1.0, static_cast<double>(tokens));
  return static_cast<std::int64_t>(wanted);
}

Routing route(const at::Tensor& logits, std::int64_t top_k, std::int64_t capacity) {
  const std::int64_t experts = logits.size(1);
  const at::Tensor probabilities = at::softmax(logits, -1, at::promoteTypes(logits.scalar_type(), at::kFloat));
  const auto [chosen, expert] = at::topk(probabilities, top_k);
  const at::Tensor weights = (chosen / chosen.sum(-1, /*keepdim=*/true)).t();
  Routing routing;
  const at::Tensor slot = give_places(expert.t().flatten(), experts, capacity);
  routing.slot = slot.view_as(weights);
  routing.assignment = taken_by(slot, experts * capacity);
  routing.weights = (weights * routing.slot.lt(experts * capacity)).to(logits.scalar_type());
  return routing;
}

at::Tensor dispatch(const at::Tensor& tokens, const Routing& routing) {
  return Dispatch::apply(tokens, routing.slot, routing.assignment);
}

at::Tensor combine(const at::Tensor& slots, const Routing& routing) {
  return Combine::apply(slots, routing.weights, routing.slot, routing.assignment);
}

}  // namespace dualpipe::detail::model
