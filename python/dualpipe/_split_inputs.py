"""What a model is called with, as tensors that have a row for each element of the batch, and all else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._sim import InputError
from ._split_stage import Sizes


def _arguments(batch: Any) -> tuple[tuple, dict]:
    if isinstance(batch, Mapping) or hasattr(batch, "data") and isinstance(batch.data, dict):  # a BatchEncoding
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}


def _text(path: Sequence) -> str:
    """args[0][1] is 0.1, kwargs["labels"] is labels."""
    keys = [getattr(each, "key", getattr(each, "idx", getattr(each, "name", "?"))) for each in path[1:]]
    return ".".join(map(str, keys))


class Inputs:
    """Of a model that is called as `forward(*example)`, or `forward(**example)` where the example is a dictionary."""

    def __init__(self, example: Any, forward: Callable[..., Any]):
        self._forward = forward
        leaves, self._form = pytree.tree_flatten_with_path(_arguments(example))
        self._leaves: list = [None if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
        self._places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.names = [_text(leaves[i][0]) for i in self._places]
        self.example: list[Tensor] = [leaves[i][1] for i in self._places]
        if not self.example or not self.example[0].dim():
            raise InputError("the example has to be what the model is called with: tensors with a row for each element")
        self.rows = len(self.example[0])
        for name, tensor in zip(self.names, self.example):
            if not tensor.dim() or len(tensor) != self.rows:
                raise InputError(
                    f"input {name} of the example has shape {list(tensor.shape)}; all inputs have to have "
                    f"{self.rows} rows, as {self.names[0]} has, to be divided into micro-batches"
                )
        self._along = next((i for i, each in enumerate(self.example) if self._is_sequence(each)), None)
        self.sizes = self.sizes_of(self.example)

    @staticmethod
    def _is_sequence(tensor: Tensor) -> bool:
        """Tokens, or their embeddings."""
        return tensor.dim() == 3 if tensor.is_floating_point() else tensor.dim() >= 2

    def sizes_of(self, inputs: Sequence[Tensor]) -> Sizes:
        return Sizes(len(inputs[0]), 0 if self._along is None else inputs[self._along].size(1))

    def shortened(self) -> list[Tensor] | None:
        """The example with sequences that are one shorter; None: it has none."""
        length = self.sizes.length
        if length < 2:
            return None
        made = []
        for tensor in self.example:
            for dim in range(1, tensor.dim()):
                if tensor.size(dim) == length and (dim == 1 or tensor.dim() != 3 or not tensor.is_floating_point()):
                    tensor = tensor.narrow(dim, 0, length - 1)
            made.append(tensor)
        return made

    def call(self, inputs: Sequence[Tensor], constants: Mapping[str, Any]) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, inputs):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._form)
        return self._forward(*args, **{**kwargs, **constants})

    def taken_from(self, batch: Any) -> tuple[Tensor, ...]:
        """Those of another batch. What in it is not a tensor counts from now on, in all calls."""
        leaves, form = pytree.tree_flatten_with_path(_arguments(batch))
        places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
        if form != self._form or places != self._places:
            names = [_text(leaves[i][0]) for i in places]
            raise InputError(
                f"the batch has {', '.join(names) or 'no tensors'}, and the example by which the model was split "
                f"{', '.join(self.names)}; give both the same"
            )
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
        return tuple(leaves[i][1] for i in places)


def passed(tensor: Tensor, is_read: bool) -> Tensor:
    """An input on its way to the next stage. Where no stage reads it any more its shape is enough: that of what goes is
    the tensor's behind a 0, so it has no elements."""
    return tensor if is_read else tensor.new_empty((0, *tensor.shape))


def received(tensor: Tensor, is_read: bool) -> Tensor:
    return tensor if is_read else torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape[1:])
