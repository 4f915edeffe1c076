// Tensors between Python and C++. Private to the binding.
#pragma once

#include <ATen/core/Tensor.h>
#include <nanobind/nanobind.h>
#include <torch/csrc/autograd/python_variable.h>

#include "dualpipe/exec/device/device.h"

// torch.Tensor; None is an undefined tensor.
template <>
struct nanobind::detail::type_caster<at::Tensor> {
  NB_TYPE_CASTER(at::Tensor, const_name("torch.Tensor | None"))

  bool from_python(handle source, std::uint8_t /*flags*/, cleanup_list* /*cleanup*/) noexcept {
    if (source.is_none()) {
      value = at::Tensor();
      return true;
    }
    if (!THPVariable_Check(source.ptr())) return false;
    value = THPVariable_Unpack(source.ptr());
    return true;
  }
  static handle from_cpp(const at::Tensor& tensor, rv_policy /*policy*/, cleanup_list* /*cleanup*/) noexcept {
    return tensor.defined() ? handle(THPVariable_Wrap(tensor)) : none().release();
  }
};
