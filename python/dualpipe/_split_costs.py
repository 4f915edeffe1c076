"""What the stages of a split model take, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._recording import tensors_in, undisturbed
from ._sim import Costs, InputError


class _Saved:
    """How many bytes autograd holds until the backward."""

    def __init__(self, parameters: set[int]):
        self._parameters = parameters
        self._storages: dict[int, Any] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = storage
        return tensor

    def bytes(self) -> int:
        return sum(each.nbytes() for each in self._storages.values())


def _seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def unit_seconds(
    model: nn.Module, names: Sequence[str], forward: Callable[[], object], device: torch.device
) -> list[float]:
    """What these modules of a model take of its forward, the least of a few."""
    best = dict.fromkeys(names, float("inf"))
    begun: dict[str, float] = {}

    def before(name: str):
        return lambda *_: begun.update({name: _seconds(device)})

    def after(name: str):
        return lambda *_: best.update({name: min(best[name], _seconds(device) - begun[name])})

    modules = [(name, model.get_submodule(name)) for name in names]
    hooks = [module.register_forward_pre_hook(before(name)) for name, module in modules]
    hooks += [module.register_forward_hook(after(name)) for name, module in modules]
    try:
        with torch.no_grad(), undisturbed(model):
            for _ in range(4):
                forward()
    finally:
        for each in hooks:
            each.remove()
    return [best[name] for name in names]


def _run(stage, given: list) -> tuple[list[float], int, list]:
    """Forward, backward, and the backward of inputs alone, in seconds; bytes held; and what the stage returned."""
    device = given[0].device
    values = list(given)
    if not stage.is_first:
        values[0] = values[0].detach().requires_grad_()
    times = []
    saved = _Saved({p.untyped_storage().data_ptr() for p in stage.parameters()})
    for inputs_alone in (True, False):
        begin = _seconds(device)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda each: each):
            output = stage(*values)
        if inputs_alone:
            times.append(_seconds(device) - begin)
        tensors = [output] if isinstance(output, Tensor) else output
        result = next((t for t in tensors if t.requires_grad), None)
        begin = _seconds(device)
        if result is not None:
            trained = [p for p in stage.parameters() if p.requires_grad]
            wanted = ([] if stage.is_first else [values[0]]) if inputs_alone else trained
            wanted = wanted if inputs_alone or stage.is_first else [*wanted, values[0]]
            if wanted:
                torch.autograd.grad(result, wanted, torch.ones_like(result), allow_unused=True)
        times.append(_seconds(device) - begin)
    held = saved.bytes() // 2  # of both runs
    return [times[0], times[2], times[1]], held, [t.detach() for t in tensors_in(tensors)]


def measured(split, repeats: int) -> Costs:
    if any(p.is_meta for p in split.model.parameters()):
        raise InputError("the model has no weights here (device meta), so nothing can be measured")
    best: list = [None] * len(split)
    message, held = [0] * len(split), [0] * len(split)
    with undisturbed(split.model):
        for _ in range(repeats + 1):  # the first one warms up
            values: list = list(split._inputs.example)
            for number, stage in enumerate(split):
                times, held[number], values = _run(stage, values)
                message[number] = sum(t.nbytes for t in values)
                best[number] = times if best[number] is None else [min(a, b) for a, b in zip(best[number], times)]
    # A first stage has no gradient of inputs to measure; its backward is shared out as those of the others are.
    others = [(b, i) for _, b, i in best[1:]]
    share = sum(i for _, i in others) / sum(b for b, _ in others) if others else 0.5
    best[0][2] = best[0][1] * share
    parameters = [sum(p.nbytes for p in stage.parameters()) for stage in split]
    gradients = [sum(p.nbytes for p in stage.parameters() if p.requires_grad) for stage in split]
    in_ms = [[each * 1e3 for each in times] for times in best]
    return Costs(
        forward=[f for f, _, _ in in_ms],
        backward=[max(b, 1e-6) for _, b, _ in in_ms],
        weight=[max(b - i, 0.0) for _, b, i in in_ms],
        activation_bytes=held,
        parameter_bytes=parameters,
        gradient_bytes=gradients,
        bytes=[*message[:-1], 0],
    )
