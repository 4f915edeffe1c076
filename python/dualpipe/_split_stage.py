"""One stage of a model that was split: the model's own forward, with the units of other stages replaced.

The last unit before the stage's own gives what was received, those before it give zeros of the shape that they would;
when the stage's last unit has returned, an exception leaves the forward. So whatever the forward does between its
units, masks, rotary embeddings, reshaping, is done by the model's own code, on the stage behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._recording import tensors_in

if TYPE_CHECKING:
    from .splitting import Split


@dataclass(frozen=True)
class Sizes:
    """Of a batch: how many rows it has, and how long its sequences are (0: it has none)."""

    rows: int
    length: int


def _dimension(value: int, at: Sizes, other: int, other_at: Sizes | None) -> Callable[[Sizes], int]:
    """A dimension that has been `value` with sizes `at`, and `other` with `other_at`."""
    if other_at is None or other == value:
        return lambda sizes: value
    slope, rest = divmod(other - value, other_at.length - at.length)
    if rest:
        return lambda sizes: value
    return lambda sizes: value + slope * (sizes.length - at.length)


class Shape:
    """Of a tensor that a module has returned. Its first dimension grows with the rows, if it is a multiple of them; all
    of them as a second run with sequences of another length shows."""

    def __init__(self, shape: torch.Size, at: Sizes, other: torch.Size | None, other_at: Sizes | None):
        other = shape if other is None or len(other) != len(shape) else other
        by_rows = bool(shape) and shape[0] % at.rows == 0 and other[0] % at.rows == 0
        factor = at.rows if by_rows else 1
        of_first = [_dimension(n // factor, at, m // factor, other_at) for n, m in zip(shape[:1], other[:1])]
        self.by_rows = by_rows
        self.dimensions = of_first + [_dimension(n, at, m, other_at) for n, m in zip(shape[1:], other[1:])]

    def __call__(self, sizes: Sizes) -> list[int]:
        made = [each(sizes) for each in self.dimensions]
        if self.by_rows:
            made[0] *= sizes.rows
        return made


class Form:
    """Of what a module has returned: the shapes of tensors, and all else as it was."""

    def __init__(self, output: Any, at: Sizes, other: Any = None, other_at: Sizes | None = None):
        others = iter(tensors_in(other) if other_at is not None else [])
        self._made = self._form(output, at, others, other_at)

    def _form(self, value: Any, at: Sizes, others, other_at) -> Callable[[Sizes, list], Any]:
        if isinstance(value, Tensor):
            other = next(others, None)
            shape = Shape(value.shape, at, None if other is None else other.shape, other_at)
            dtype, device = value.dtype, value.device

            def tensor(sizes: Sizes, received: list) -> Tensor:
                return received.pop() if received else torch.zeros(shape(sizes), dtype=dtype, device=device)

            return tensor
        if isinstance(value, (tuple, list)):
            parts = [self._form(each, at, others, other_at) for each in value]
            make = type(value)._make if hasattr(value, "_make") else type(value)
            return lambda sizes, received: make([each(sizes, received) for each in parts])
        if isinstance(value, dict):
            items = [(key, self._form(each, at, others, other_at)) for key, each in value.items()]
            kind = type(value)
            return lambda sizes, received: kind(**{key: each(sizes, received) for key, each in items})
        return lambda sizes, received: value

    def make(self, sizes: Sizes, received: Tensor | None) -> Any:
        """`received` takes the place of the first tensor."""
        return self._made(sizes, [] if received is None else [received])


class Left(BaseException):
    """Leaves the forward of a model. Not an Exception: code of the model that catches these must not catch it."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = tensor


def stand_in(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Zeros of the same form, which take no memory."""
    return torch.zeros((), dtype=tensor.dtype, device=device or tensor.device).expand(tensor.shape)


class _InPlaceOf(nn.Module):
    """What stands where a module of the model does, while the stage runs; with the attributes of that one."""

    def __init__(self, replaced: nn.Module):
        super().__init__()
        self.__dict__["_replaced"] = replaced
        self.training = replaced.training

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_replaced"], name)
        return stand_in(value, torch.device("cpu")) if isinstance(value, Tensor) and value.is_meta else value

    def __iter__(self):
        return iter(self.__dict__["_replaced"])

    def __len__(self) -> int:
        return len(self.__dict__["_replaced"])


class _Skipped(_InPlaceOf):
    """A unit of an earlier stage."""

    def __init__(self, replaced: nn.Module, form: Form, stage: SplitStage, gives_received: bool):
        super().__init__(replaced)
        self.__dict__.update(_form=form, _stage=stage, _gives_received=gives_received)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        stage = own["_stage"]
        return own["_form"].make(stage._sizes, stage._received if own["_gives_received"] else None)


class _Last(_InPlaceOf):
    """The last unit of the stage."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__dict__["_replaced"](*args, **kwargs)
        raise Left(tensors_in(output)[0])


class SplitStage(nn.Module):
    """What one rank runs of a model. Its parameters and buffers are the model's own, under the model's names.

    The first stage is called with the model's inputs, the others with what the one before returned: the tensor at the
    cut, and the inputs that the stages from there on read. The last one returns what the model does: a tensor, or a
    tuple of those that are in its output.
    """

    def __init__(self, split: Split, number: int):
        super().__init__()
        begin, end = split.bounds[number : number + 2]
        self.__dict__.update(
            _split=split,
            _number=number,
            _received=None,
            _sizes=None,
            _constants={},
            _swaps=[],
            _around=[],
            units=split.units[begin:end],
        )
        self.training = split.model.training
        self._fill(self, split.model, "")
        self._find_swaps(begin, end)

    def _fill(self, target: nn.Module, source: nn.Module, prefix: str) -> None:
        """What this stage holds of `source`; units are the model's own modules, what is around them is a frame."""
        split, number = self._split, self._number
        self._around.append(source)
        target.training = source.training
        target._buffers = source._buffers
        target._non_persistent_buffers_set = source._non_persistent_buffers_set
        for name, parameter in source._parameters.items():
            if parameter is not None and number in split.holders[prefix + name]:
                target.register_parameter(name, parameter)
        for name, child in source._modules.items():
            full = prefix + name
            if child is None:
                continue
            if full in self.units:
                target.add_module(name, child)
                continue
            frame = nn.Module()
            if full in split.units:  # whose weight a later stage uses by itself, perhaps
                for key, parameter in child._parameters.items():
                    if parameter is not None and number in split.holders[f"{full}.{key}"]:
                        frame.register_parameter(key, parameter)
            else:
                self._fill(frame, child, full + ".")
            if frame._parameters or frame._buffers or frame._modules:
                target.add_module(name, frame)

    def _find_swaps(self, begin: int, end: int) -> None:
        """What of the model is replaced while the stage runs: dictionary, key, replacement."""
        split = self._split
        for index, name in enumerate(split.units):
            parent, _, child = name.rpartition(".")
            modules = split.model.get_submodule(parent)._modules
            replacement: nn.Module
            if index < begin:
                replacement = _Skipped(modules[child], split.forms[name], self, index == begin - 1)
            elif index == end - 1 and end < len(split.units):
                replacement = _Last(modules[child])
            else:
                continue
            self._swaps.append((modules, child, replacement))
        for name, holders in split.holders.items():
            path, _, key = name.rpartition(".")
            if name in split.outside_units and self._number not in holders:
                parameters = split.model.get_submodule(path)._parameters
                self._swaps.append((parameters, key, stand_in(parameters[key], split.device)))

    @property
    def is_first(self) -> bool:
        return self._number == 0

    @property
    def is_last(self) -> bool:
        return self._number == len(self._split) - 1

    def set_constants(self, **values: Any) -> None:
        """Arguments of the model's forward that are not divided into micro-batches, and are the same on all stages."""
        self.__dict__["_constants"] = values

    def train(self, mode: bool = True) -> SplitStage:
        super().train(mode)
        for each in self._around:
            each.training = mode
        return self

    def forward(self, *given: Tensor | None) -> Any:
        split = self._split
        if self.is_first:
            inputs = split.checked(given)
        else:
            self._received, inputs = given[0], split.restored(self._number, given[1:])
        self._sizes = split.sizes_of(inputs)
        swapped = [(where, key, where[key]) for where, key, _ in self._swaps]
        try:
            for where, key, replacement in self._swaps:
                where[key] = replacement
            output = split.call(inputs, self._constants)
        except Left as left:
            return [left.tensor, *split.passed_on(self._number, inputs)]
        finally:
            for where, key, before in swapped:
                where[key] = before
            self.__dict__.update(_received=None, _sizes=None)
        if not self.is_last:
            raise RuntimeError(f"the model's forward has ended before it came to {self.units[-1]}, at which it was cut")
        return flat(output)


def flat(output: Any) -> Any:
    """A tensor as it is; of anything else its tensors."""
    return output if isinstance(output, Tensor) else tensors_in(output)
