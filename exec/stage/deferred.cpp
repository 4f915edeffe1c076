#include "dualpipe/exec/stage/deferred.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstddef>
#include <optional>

namespace dualpipe::detail::stage::deferred {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto gradients_key = "weight_gradients";

void keep(AutogradContext* context, WeightGradients& gradients) {
  context->saved_data[gradients_key] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(&gradients));
}

WeightGradients& kept(AutogradContext* context) {
  return *reinterpret_cast<WeightGradients*>(static_cast<std::intptr_t>(context->saved_data[gradients_key].toInt()));
}

// As autograd does: the first gradient, which a kernel has just made for this, is taken over; those that follow are
// added in place.
void accumulate(const at::Tensor& parameter, at::Tensor gradient) {
  if (!parameter.requires_grad() || !gradient.defined()) return;
  at::Tensor& sum = parameter.mutable_grad();
  if (sum.defined()) {
    sum.add_(gradient);
  } else {
    sum = gradient.to(parameter.scalar_type()).contiguous();
  }
}

// For a layer one kernel of which makes all gradients, `run(of_input, of_parameters)`: it accumulates those of the
// parameters, and returns that of the input. B runs it once, I and W each for their part.
template <typename Run>
at::Tensor run_in_parts(AutogradContext* context, const Run& run) {
  WeightGradients& gradients = kept(context);
  const bool of_input = context->needs_input_grad(0);
  if (!gradients.deferred()) return run(of_input, true);
  at::Tensor input_gradient;
  if (of_input) input_gradient = run(true, false);
  gradients.add([run] { static_cast<void>(run(false, true)); });
  return input_gradient;
}

// The functions below return no gradient for a parameter: `accumulate` has added it, or will. The parameter is an input
// of theirs all the same, so that the graph reaches them when nothing else needs a gradient (in a first stage).

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const LinearCopies* copies,
                            WeightGradients* gradients) {
    context->save_for_backward({input, weight, bias.value_or(at::Tensor()), copies->weight});
    keep(context, *gradients);
    return at::linear(input, copies->weight, bias ? std::optional(copies->bias) : std::nullopt);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor& bias = saved[2];
    const at::Tensor input = saved[0].detach();  // or W would hold the graph behind it
    const at::Tensor gradient = output_gradients[0].reshape({-1, weight.size(0)});

    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = gradient.mm(saved[3]).view(input.sizes());
    kept(context).add([input, weight, bias, gradient] {
      if (weight.requires_grad()) accumulate(weight, gradient.t().mm(input.reshape({-1, weight.size(1)})));
      if (bias.defined() && bias.requires_grad()) accumulate(bias, gradient.sum(0));
    });
    return {input_gradient, {}, {}, {}, {}};
  }
};

struct BatchedLinear : torch::autograd::Function<BatchedLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const LinearCopies* copies, WeightGradients* gradients) {
    context->save_for_backward({input, weight, copies->weight});
    keep(context, *gradients);
    return at::bmm(input, copies->weight);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor input = saved[0].detach();  // or W would hold the graph behind it
    const at::Tensor& gradient = output_gradients[0];

    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = gradient.bmm(saved[2].transpose(1, 2));
    kept(context).add([input, weight, gradient] {
      if (weight.requires_grad()) accumulate(weight, input.transpose(1, 2).bmm(gradient));
    });
    return {input_gradient, {}, {}, {}};
  }
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight, const at::Tensor& indices,
                            WeightGradients* gradients) {
    context->save_for_backward({weight, indices});
    keep(context, *gradients);
    return at::embedding(weight, indices);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    kept(context).add([weight = saved[0], indices = saved[1], gradient = output_gradients[0]] {
      constexpr std::int64_t no_padding = -1;
      accumulate(weight, at::embedding_dense_backward(gradient, indices, weight.size(0), no_padding, false));
    });
    return {{}, {}, {}};
  }
};

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias, double epsilon, WeightGradients* gradients) {
    auto [output, mean, rstd] =
        at::native_layer_norm(input.to(weight.scalar_type()), weight.sizes(), weight, bias, epsilon);
    context->save_for_backward({input, weight, bias, mean, rstd});
    keep(context, *gradients);
    return output.to(input.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto run = [input = saved[0].detach(), weight = saved[1], bias = saved[2], mean = saved[3], rstd = saved[4],
                      gradient = output_gradients[0]](bool of_input, bool of_parameters) {
      const at::ScalarType type = weight.scalar_type();
      auto [input_gradient, weight_gradient, bias_gradient] =
          at::native_layer_norm_backward(gradient.to(type), input.to(type), weight.sizes(), mean, rstd, weight, bias,
                                         {of_input, of_parameters, of_parameters});
      accumulate(weight, std::move(weight_gradient));
      accumulate(bias, std::move(bias_gradient));
      return of_input ? input_gradient.to(input.scalar_type()) : input_gradient;
    };

    return {run_in_parts(context, run), {}, {}, {}, {}};
  }
};

// at::rms_norm has no kernel of its own on a CPU; these are the steps it takes, and those of their backwards:
//
//     scale = 1 / sqrt(mean(input^2) + epsilon)      output = input * scale * weight
//
// The input reaches the output in two ways, and plain autograd adds the two gradients to what else it has for the input
// (a residual connection's) one after the other. So `input` comes in twice here. (Where it is converted first, they are
// added before they are converted back.)
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& /*input*/,
                            const at::Tensor& weight, double epsilon, WeightGradients* gradients) {
    const at::Tensor converted = input.to(weight.scalar_type());
    const at::Tensor scale = converted.pow(2).mean(-1, /*keepdim=*/true).add_(epsilon).rsqrt();
    context->save_for_backward({input, weight, scale});
    keep(context, *gradients);
    return converted.mul(scale).mul_(weight).to(input.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor& scale = saved[2];
    const at::Tensor kept_input = saved[0].detach();
    const at::Tensor kept_gradient = output_gradients[0];
    const at::ScalarType type = weight.scalar_type();
    const at::Tensor input = kept_input.to(type);
    const at::Tensor gradient = kept_gradient.to(type);

    at::Tensor by_product;
    at::Tensor by_scale;
    if (context->needs_input_grad(0)) {
      const at::Tensor of_product = gradient.mul(weight);
      by_product = of_product.mul(scale);
      const at::Tensor of_scale = of_product.mul(input).sum(-1, /*keepdim=*/true);
      const at::Tensor of_mean = of_scale.mul(-0.5).mul_(scale.pow(3));
      by_scale = input.mul(2).mul_(of_mean.div(input.size(-1)));
    }
    kept(context).add([kept_input, kept_gradient, weight, scale, type] {
      if (!weight.requires_grad()) return;
      accumulate(weight, at::sum_to(kept_gradient.to(type).mul(kept_input.to(type).mul(scale)), weight.sizes()));
    });
    if (kept_input.scalar_type() == type || !by_product.defined()) return {by_product, by_scale, {}, {}, {}};
    return {by_product.add_(by_scale).to(kept_input.scalar_type()), {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor linear(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                  const LinearCopies& copies) {
  return Linear::apply(input, weight, bias.defined() ? std::optional(bias) : std::nullopt, &copies, &gradients);
}

at::Tensor batched_linear(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                          const LinearCopies& copies) {
  return BatchedLinear::apply(input, weight, &copies, &gradients);
}

at::Tensor embedding(WeightGradients& gradients, const at::Tensor& weight, const at::Tensor& indices) {
  return Embedding::apply(weight, indices, &gradients);
}

at::Tensor layer_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                      const at::Tensor& bias, double epsilon) {
  return LayerNorm::apply(input, weight, bias, epsilon, &gradients);
}

at::Tensor rms_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  return RmsNorm::apply(input, input, weight, epsilon, &gradients);
}

}  // namespace dualpipe::detail::stage::deferred
