#include "dualpipe/exec/stage/deferred.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
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

constexpr auto weight_key = "weight";
constexpr auto bias_key = "bias";

// The parameters themselves, and not as saved variables: under activation checkpointing those are others when they come
// back, with the same values.
void keep(AutogradContext* context, WeightGradients& gradients, const at::Tensor& weight,
          const at::Tensor& bias = at::Tensor()) {
  context->saved_data[gradients_key] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(&gradients));
  context->saved_data[weight_key] = weight;
  context->saved_data[bias_key] = bias;
}

struct Parameters {
  at::Tensor weight;
  at::Tensor bias;  // undefined: none
};
Parameters parameters_of(AutogradContext* context) {
  return {context->saved_data[weight_key].toTensor(), context->saved_data[bias_key].toTensor()};
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
    context->save_for_backward({input, copies->weight});
    keep(context, *gradients, weight, bias.value_or(at::Tensor()));
    return at::linear(input, copies->weight, bias ? std::optional(copies->bias) : std::nullopt);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto [weight, bias] = parameters_of(context);
    const at::Tensor input = saved[0].detach();  // or W would hold the graph behind it
    const at::Tensor gradient = output_gradients[0].reshape({-1, weight.size(0)});

    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = gradient.mm(saved[1]).view(input.sizes());
    kept(context).add([input, weight = weight, bias = bias, gradient] {
      if (weight.requires_grad()) accumulate(weight, gradient.t().mm(input.reshape({-1, weight.size(1)})));
      if (bias.defined() && bias.requires_grad()) accumulate(bias, gradient.sum(0));
    });
    return {input_gradient, {}, {}, {}, {}};
  }
};

struct BatchedLinear : torch::autograd::Function<BatchedLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const LinearCopies* copies, WeightGradients* gradients) {
    context->save_for_backward({input, copies->weight});
    keep(context, *gradients, weight);
    return at::bmm(input, copies->weight);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor input = saved[0].detach();  // or W would hold the graph behind it
    const at::Tensor& gradient = output_gradients[0];

    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = gradient.bmm(saved[1].transpose(1, 2));
    kept(context).add([input, weight = parameters_of(context).weight, gradient] {
      if (weight.requires_grad()) accumulate(weight, input.transpose(1, 2).bmm(gradient));
    });
    return {input_gradient, {}, {}, {}};
  }
};

struct Addmm : torch::autograd::Function<Addmm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& bias,
                            const at::Tensor& weight, const LinearCopies* copies, WeightGradients* gradients) {
    context->save_for_backward({input, copies->weight});
    keep(context, *gradients, weight, bias);
    return at::addmm(copies->bias, input, copies->weight);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto [weight, bias] = parameters_of(context);
    const at::Tensor input = saved[0].detach();  // or W would hold the graph behind it
    const at::Tensor& gradient = output_gradients[0];

    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = gradient.mm(saved[1].t());
    kept(context).add([input, weight = weight, bias = bias, gradient] {
      if (weight.requires_grad()) accumulate(weight, input.t().mm(gradient));
      if (bias.requires_grad()) accumulate(bias, at::sum_to(gradient, bias.sizes()));
    });
    return {input_gradient, {}, {}, {}, {}};
  }
};

struct Convolve : torch::autograd::Function<Convolve> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const Convolution* form, const LinearCopies* copies,
                            WeightGradients* gradients) {
    context->save_for_backward({input, copies->weight});
    context->saved_data["stride"] = form->stride;
    context->saved_data["padding"] = form->padding;
    context->saved_data["dilation"] = form->dilation;
    context->saved_data["groups"] = form->groups;
    keep(context, *gradients, weight, bias.value_or(at::Tensor()));
    return at::convolution(input, copies->weight, bias ? std::optional(copies->bias) : std::nullopt, form->stride,
                           form->padding, form->dilation, false, none(*form), form->groups);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const Convolution form = {data["stride"].toIntVector(), data["padding"].toIntVector(),
                              data["dilation"].toIntVector(), data["groups"].toInt()};
    const auto run = [input = saved[0].detach(), copy = saved[1], parameters = parameters_of(context),
                      gradient = output_gradients[0], form](bool of_input, bool of_parameters) {
      const auto& [weight, bias] = parameters;
      const bool has_bias = bias.defined();
      auto [input_gradient, weight_gradient, bias_gradient] = at::convolution_backward(
          gradient, input, copy, has_bias ? at::OptionalIntArrayRef(bias.sizes()) : std::nullopt, form.stride,
          form.padding, form.dilation, false, none(form), form.groups,
          {of_input, of_parameters && weight.requires_grad(), of_parameters && has_bias && bias.requires_grad()});
      if (weight_gradient.defined()) accumulate(weight, std::move(weight_gradient));
      if (bias_gradient.defined()) accumulate(bias, std::move(bias_gradient));
      return input_gradient;
    };
    return {run_in_parts(context, run), {}, {}, {}, {}, {}};
  }

  static std::vector<std::int64_t> none(const Convolution& form) {
    return std::vector<std::int64_t>(form.stride.size());
  }
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight, const at::Tensor& indices,
                            std::int64_t padding_index, WeightGradients* gradients) {
    context->save_for_backward({indices});
    context->saved_data["padding"] = padding_index;
    keep(context, *gradients, weight);
    return at::embedding(weight, indices, padding_index);
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const std::int64_t padding = context->saved_data["padding"].toInt();
    const at::Tensor weight = parameters_of(context).weight;
    kept(context).add([weight, indices = saved[0], gradient = output_gradients[0], padding] {
      accumulate(weight, at::embedding_dense_backward(gradient, indices, weight.size(0), padding, false));
    });
    return {{}, {}, {}, {}};
  }
};

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias, double epsilon, WeightGradients* gradients) {
    auto [output, mean, rstd] =
        at::native_layer_norm(input.to(weight.scalar_type()), weight.sizes(), weight, bias, epsilon);
    context->save_for_backward({input, mean, rstd});
    keep(context, *gradients, weight, bias);
    return output.to(input.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto run = [input = saved[0].detach(), mean = saved[1], rstd = saved[2], parameters = parameters_of(context),
                      gradient = output_gradients[0]](bool of_input, bool of_parameters) {
      const auto& [weight, bias] = parameters;
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
    context->save_for_backward({input, scale});
    keep(context, *gradients, weight);
    return converted.mul(scale).mul_(weight).to(input.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor weight = parameters_of(context).weight;
    const at::Tensor& scale = saved[1];
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

at::Tensor addmm(WeightGradients& gradients, const at::Tensor& bias, const at::Tensor& input, const at::Tensor& weight,
                 const LinearCopies& copies) {
  return Addmm::apply(input, bias, weight, &copies, &gradients);
}

at::Tensor convolution(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& bias, const Convolution& form, const LinearCopies& copies) {
  return Convolve::apply(input, weight, bias.defined() ? std::optional(bias) : std::nullopt, &form, &copies,
                         &gradients);
}

at::Tensor embedding(WeightGradients& gradients, const at::Tensor& weight, const at::Tensor& indices,
                     std::int64_t padding_index) {
  return Embedding::apply(weight, indices, padding_index, &gradients);
}

at::Tensor layer_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight,
                      const at::Tensor& bias, double epsilon) {
  return LayerNorm::apply(input, weight, bias, epsilon, &gradients);
}

at::Tensor rms_norm(WeightGradients& gradients, const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  return RmsNorm::apply(input, input, weight, epsilon, &gradients);
}

}  // namespace dualpipe::detail::stage::deferred
