#include "dualpipe/exec/stage/recompute.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

namespace dualpipe {
namespace {

using Apply = std::function<at::Tensor(const at::Tensor&)>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a context can hold.
struct HeldApply : torch::CustomClassHolder {
  explicit HeldApply(Apply function) : apply(std::move(function)) {}
  Apply apply;
};

constexpr auto apply_key = "apply";

struct Recomputed : torch::autograd::Function<Recomputed> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const Apply& apply) {
    context->save_for_backward({input});
    context->saved_data[apply_key] = c10::IValue::make_capsule(c10::make_intrusive<HeldApply>(apply));
    return apply(input);  // gradients are off in here
  }

  static variable_list backward(AutogradContext* context, variable_list output_gradients) {
    const auto held = c10::static_intrusive_pointer_cast<HeldApply>(context->saved_data[apply_key].toCapsule());
    const at::Tensor input = context->get_saved_variables()[0].detach().set_requires_grad(true);
    at::Tensor output;
    {
      const c10::AutoGradMode with_gradients(true);
      output = held->apply(input);
    }
    variable_list found = torch::autograd::grad({std::move(output)}, {input}, output_gradients);
    return {std::move(found[0]), {}};
  }
};

}  // namespace

at::Tensor recomputed(const at::Tensor& input, const Apply& apply) { return Recomputed::apply(input, apply); }

}  // namespace dualpipe
