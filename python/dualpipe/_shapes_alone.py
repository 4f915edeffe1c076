"""Models on the meta device, whose weights are nowhere yet: they run by the shapes of their tensors alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from ._sim import InputError
from ._split_inputs import Inputs


class _Fakes:
    """By tensor one that has its shape, and seems to be on `device`: code for the meta device goes other ways."""

    def __init__(self, mode: FakeTensorMode, device: torch.device):
        self._mode, self._device = mode, device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            made: Tensor = FakeTensor(self._mode, tensor.detach().to("meta"), self._device)
            if isinstance(tensor, nn.Parameter):
                with self._mode:
                    made = nn.Parameter(made, tensor.requires_grad)
            self._made[id(tensor)] = made, tensor
        return self._made[id(tensor)][0]


@contextlib.contextmanager
def run_by_shapes(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """While it lasts the model has other parameters and buffers, and the example is another one, all without values.

    Raises InputError where the model's code asks for a value, or for what Torch has no shapes of.
    """
    mode = FakeTensorMode()
    fakes = _Fakes(mode, inputs.example[0].device)
    tensors = [
        (of_module, key, tensor)
        for module in model.modules()
        for of_module in (module._parameters, module._buffers)
        for key, tensor in of_module.items()
        if tensor is not None
    ]
    example = inputs.example
    try:
        for of_module, key, tensor in tensors:
            of_module[key] = fakes.of(tensor)
        inputs.example = [fakes.of(each) for each in example]
        with mode:
            yield
    except InputError:
        raise
    except Exception as error:
        looks = isinstance(error, (DataDependentOutputException, DynamicOutputShapeException))
        reason = f"its forward looks at values ({error})" if looks else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{type(model).__name__} is on the meta device, and cannot be run by the shapes of its tensors alone: "
            f"{reason}. Split it with its weights, and release_others() afterwards"
        ) from error
    finally:
        inputs.example = example
        for of_module, key, tensor in tensors:
            of_module[key] = tensor
