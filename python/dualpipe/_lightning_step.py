"""A step of a LightningModule, over micro-batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._sim import InputError
from .model_pipeline import ModelPipeline


@dataclass
class Outcome:
    """Of a step, for the whole batch."""

    loss: Tensor
    output: Any
    logged: list[tuple[str, Any, dict]]


@dataclass
class _Part:
    """Of a micro-batch: how many rows count, what was logged, and what the step has returned, without its rows."""

    rows: Tensor
    logged: list[tuple[str, Tensor, dict]]
    leaves: list
    form: Any


class _Rows:
    """In place of a tensor with rows."""


class Step:
    """Called by the stages with how much each row counts, and the batch. What it logs, and the numbers that it
    returns, are kept by micro-batch; what has rows is the stage's output."""

    pipe: ModelPipeline

    def __init__(self, module: Any, name: str, context: Callable[[], Any]):
        self.module, self.name, self._context = module, name, context
        takes_number = len(inspect.signature(getattr(module, name)).parameters) > 1
        self._rest: tuple = (0,) if takes_number else ()
        self._returns_rows = False
        self._parts: list[_Part] = []

    @property
    def _trains(self) -> bool:
        return self.name == "training_step"

    def __call__(self, counts: Tensor, batch: Any) -> list[Tensor]:
        logged: list[tuple[str, Tensor, dict]] = []
        counts = counts.detach()

        def log(name: str, value: Any, **options: Any) -> None:
            logged.append((name, _number(name, value), options))

        self.module.__dict__["log"] = log  # of a stage that leaves the step before its end, nothing is kept
        try:
            with self._context():
                output = getattr(self.module, self.name)(batch, *self._rest)
        finally:
            del self.module.__dict__["log"]
        loss = output.get("loss") if isinstance(output, dict) else output
        if self._trains and not isinstance(loss, Tensor):
            raise InputError("training_step has to return the loss, or a dictionary that has it")
        leaves, form = pytree.tree_flatten(output)
        rows = [each for each in leaves if isinstance(each, Tensor) and each.dim()]
        self._parts.append(_Part(counts.sum(), logged, [_without_rows(each) for each in leaves], form))
        return [loss if self._trains else counts.sum(), *rows]

    def run(self, batch: Any, *rest: Any) -> Outcome:
        """Of the whole batch, on all ranks."""
        self._rest = rest
        self._parts = []
        leaves, form = pytree.tree_flatten(batch)
        tensors = [each for each in leaves if isinstance(each, Tensor) and each.dim()]
        rows, places = len(tensors[0]), self.pipe.schedule.microbatches
        counts = torch.ones(rows, device=tensors[0].device)
        if rows < places:  # filled up with rows that do not count
            leaves = [_filled(x, places - rows) if isinstance(x, Tensor) and x.dim() else x for x in leaves]
            counts = torch.cat([counts, torch.zeros(places - rows, device=counts.device)])
            batch = pytree.tree_unflatten(leaves, form)
        with torch.set_grad_enabled(self._trains):
            loss, outputs = self.pipe.step((counts, batch), weights=counts, return_outputs=self._returns_rows)
        return self._outcome(loss, [each[:rows] if len(each) >= rows else each for each in outputs])

    def see_example(self) -> None:
        """After the split: whether tensors with rows were returned then says whether there will be."""
        self._returns_rows = any(isinstance(x, _Rows) for part in self._parts for x in part.leaves)
        self._parts = []

    def _outcome(self, loss: Tensor | None, outputs: list[Tensor]) -> Outcome:
        parts = [part for each in self.pipe.gathered(self._parts) for part in each]
        total = sum(float(part.rows) for part in parts)
        shares = [float(part.rows) / total for part in parts]
        logged = [
            (name, sum(p.logged[i][1] * share for p, share in zip(parts, shares)), options)
            for i, (name, _, options) in enumerate(parts[0].logged)
        ]
        joined = iter(outputs)
        leaves = []
        for i, leaf in enumerate(parts[0].leaves):
            if isinstance(leaf, _Rows):
                leaf = next(joined)
            elif isinstance(leaf, Tensor):
                leaf = sum(part.leaves[i] * share for part, share in zip(parts, shares))
            leaves.append(leaf)
        assert loss is not None
        return Outcome(loss, pytree.tree_unflatten(leaves, parts[0].form), logged)


def _without_rows(leaf: Any) -> Any:
    return leaf if not isinstance(leaf, Tensor) else _Rows() if leaf.dim() else leaf.detach()


def _filled(tensor: Tensor, more: int) -> Tensor:
    return torch.cat([tensor, tensor[:1].expand(more, *tensor.shape[1:])])


def _number(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return torch.tensor(float(value))
    raise InputError(
        f"self.log({name!r}, ...) in a pipeline takes a number, and got a {type(value).__name__}: metrics with a state "
        "would see the micro-batches of the last rank alone. Compute the value in the step"
    )
