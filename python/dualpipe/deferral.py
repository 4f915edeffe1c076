"""Weight gradients that wait for W, in modules that know nothing of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from . import _exec


def _are_parameters(weight, bias=None) -> bool:
    return type(weight) is Parameter and (bias is None or type(bias) is Parameter)


def _linear(input, weight, bias=None):
    return _exec.linear(input, weight, bias) if _are_parameters(weight, bias) else None


def _addmm(input, mat1, mat2, *, beta=1, alpha=1, out=None):
    if beta != 1 or alpha != 1 or out is not None or not _are_parameters(mat2, input):
        return None
    return _exec.addmm(input, mat1, mat2)


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if not _are_parameters(weight, bias) or isinstance(padding, str):
        return None
    form = [[each] if isinstance(each, int) else list(each) for each in (stride, padding, dilation)]
    return _exec.convolution(input, weight, bias, *form, groups)


def _embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    if max_norm is not None or scale_grad_by_freq or sparse or not _are_parameters(weight):
        return None
    if padding_idx is None:
        return _exec.embedding(input, weight, -1)
    return _exec.embedding(input, weight, padding_idx % weight.size(0))


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    if weight is None or bias is None or not _are_parameters(weight, bias):
        return None
    return _exec.layer_norm(input, weight, bias, eps)


def _rms_norm(input, normalized_shape, weight=None, eps=None):
    if not _are_parameters(weight):
        return None
    return _exec.rms_norm(input, weight, torch.finfo(input.dtype).eps if eps is None else eps)


# What a layer is called with, and which of the arguments are parameters.
_LAYERS = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}


class Deferral(TorchFunctionMode):
    """While it is active, layers leave their weight gradients to the current stage, where they can."""

    def __init__(self):
        super().__init__()
        self.waiting: set[int] = set()  # ids of parameters whose gradients wait

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        layer = _LAYERS.get(func)
        if layer is not None:
            result = layer(*args, **kwargs)
            if result is not None:
                given = (*args, *kwargs.values())
                self.waiting.update(id(each) for each in given if type(each) is Parameter)
                return result
        return func(*args, **kwargs)


@dataclass(frozen=True)
class DeferralReport:
    """Which weight gradients W computes, and which I does, as no layer leaves them to W."""

    deferred: tuple[str, ...]
    computed_in_i: tuple[str, ...]
    share: float
    """Of the elements of all trained parameters, those whose gradients wait."""

    def __str__(self) -> str:
        text = f"{self.share:.1%} of the trained parameters have their gradients computed in W"
        return f"{text}; in I: {', '.join(self.computed_in_i)}" if self.computed_in_i else text


def can_defer(module: nn.Module) -> bool:
    """Whether nothing in it but autograd brings gradients to parameters."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    strange = (torch._dynamo.OptimizedModule, torch.jit.ScriptModule, FSDPModule, FullyShardedDataParallel)
    return not any(isinstance(each, strange) for each in module.modules())


def report(modes: list[tuple[str, nn.Module, Deferral | None]]) -> DeferralReport:
    """`modes`: of each stage of the rank a prefix of names, its module, and its mode."""
    deferred, computed, elements, waiting = [], [], 0, 0
    for prefix, module, mode in modes:
        for name, parameter in module.named_parameters(prefix):
            if not parameter.requires_grad:
                continue
            elements += parameter.numel()
            if mode is not None and id(parameter) in mode.waiting:
                deferred.append(name)
                waiting += parameter.numel()
            else:
                computed.append(name)
    return DeferralReport(tuple(deferred), tuple(computed), waiting / elements if elements else 0.0)
