"""What a model's forward does with one example: which modules it calls, in which order, and what depends on what."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it warns that there is no Triton
from torch.utils.flop_counter import flop_registry  # noqa: E402


def tensors_in(value: object) -> list[Tensor]:
    """Those of tuples, lists, dictionaries and dataclass-like outputs, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for each in value.values() for t in tensors_in(each)]
    if isinstance(value, (tuple, list)):
        return [t for each in value for t in tensors_in(each)]
    return []


@dataclass
class Call:
    """One call of a module."""

    number: int
    """Calls are numbered as they begin."""
    given: list[Tensor]
    first_node: int
    """Autograd's numbers of the nodes that were made in the call: from this one on, ..."""
    end_node: int = 0
    """... and below this one."""
    output: Any = None
    node: Any = None
    """Which node has made the first tensor of the output; None: it depends on no parameter."""
    flops: int = 0
    seconds: float = 0.0

    @property
    def tensor(self) -> Tensor | None:
        return next(iter(tensors_in(self.output)), None)


class _Flops(TorchDispatchMode):
    """Counts floating point operations of matrix products, convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass
class Recording:
    calls: dict[str, list[Call]]
    output: Any


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """What a forward changes besides is put back: buffers, and the states of random generators."""
    buffers = [(b, b.clone()) for b in model.buffers() if not b.is_meta]
    devices = {b.device.index or 0 for b in [*model.parameters(), *model.buffers()] if b.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def all_trained(model: nn.Module) -> Iterator[None]:
    """Frozen parameters take part, so that the graph shows all that depends on them."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for each in frozen:
        each.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


def record(model: nn.Module, forward: Callable[[], object]) -> Recording:
    """Runs `forward`, which calls modules of `model`."""
    calls: dict[str, list[Call]] = {}
    flops = _Flops()
    begun = 0

    def before(name: str):
        def hook(module, args, kwargs):
            nonlocal begun
            begun += 1
            call = Call(begun, tensors_in([list(args), kwargs]), torch.autograd._get_sequence_nr())
            call.flops, call.seconds = -flops.total, -time.perf_counter()
            calls.setdefault(name, []).append(call)

        return hook

    def after(name: str):
        def hook(module, args, kwargs, output):
            call = next(each for each in reversed(calls[name]) if each.end_node == 0)
            call.flops += flops.total
            call.seconds += time.perf_counter()
            call.end_node = torch.autograd._get_sequence_nr()
            call.output = output
            call.node = None if call.tensor is None else call.tensor.grad_fn

        return hook

    hooks = []
    try:
        for name, module in model.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
                hooks.append(module.register_forward_hook(after(name), with_kwargs=True))
        with flops:
            output = forward()
    finally:
        for each in hooks:
            each.remove()
    return Recording(calls, output)


# --- units: what a model is cut between

LARGE = 0.6  # of all parameters: a module that has more is opened


def _submodule(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name) if name else model


def _called_children(model: nn.Module, name: str, calls: dict, sizes: dict[str, int]) -> list[str]:
    found = []
    for child, _ in _submodule(model, name).named_children():
        full = f"{name}.{child}" if name else child
        if full in calls:
            found.append(full)
        elif sizes[full]:
            found += _called_children(model, full, calls, sizes)
    return found


def _opened(model: nn.Module, name: str, calls: dict, sizes: dict[str, int]) -> list[str]:
    found = []
    for child in _called_children(model, name, calls, sizes):
        module = _submodule(model, child)
        parent = _submodule(model, child.rpartition(".")[0])
        is_block = isinstance(parent, nn.ModuleList) and len(parent) > 1
        is_row = isinstance(module, nn.Sequential) and len(module) > 1
        is_large = sizes[child] > LARGE * sizes[""] and any(True for _ in module.children()) and not is_block
        found += _opened(model, child, calls, sizes) if is_row or is_large else [child]
    return found


def units_of(model: nn.Module, recording: Recording) -> list[str]:
    """Modules that the forward calls one after the other, each once: a layer, an embedding, a head. Lists and large
    modules are opened. A module without parameters is one where the next unit's first argument is its very output."""
    calls = recording.calls
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    once = [n for n in _opened(model, "", calls, sizes) if len(calls[n]) == 1 and calls[n][0].tensor is not None]
    kept: list[str] = []
    for name in sorted(once, key=lambda n: calls[n][0].number, reverse=True):
        tensor = calls[name][0].tensor
        if sizes[name] or (kept and calls[kept[-1]][0].given and calls[kept[-1]][0].given[0] is tensor):
            kept.append(name)
    return kept[::-1]


# --- places: after which units the model may be cut


def leaves_of(outputs: list[Tensor]) -> set[int]:
    """The ids of the tensors, parameters say, whose gradients come from these."""
    found, seen, todo = set(), set(), [t.grad_fn for t in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [each for each, _ in node.next_functions]
    return found


def _unit_around(cut: Any, outputs: list[Tensor], windows: list[tuple[int, int]]) -> int | None:
    """Which of the units, whose nodes `windows` has, brings gradients to the outputs without the node `cut`."""
    seen, todo = {cut}, [t.grad_fn for t in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # a parameter, which a later stage may use as well
            continue
        number = node._sequence_nr()
        for unit, (first, end) in enumerate(windows):
            if first <= number < end:
                return unit
        todo += [each for each, _ in node.next_functions]
    return None


def obstacles(units: list[str], recording: Recording) -> list[str]:
    """For the place after each unit but the last one: "" where one may cut there, or why one may not."""
    calls = [recording.calls[name][0] for name in units]
    windows = [(each.first_node, each.end_node) for each in calls]
    outputs = tensors_in(recording.output)
    found = []
    for place in range(len(units) - 1):
        if calls[place].node is None:
            found.append(f"the output of {units[place]} has no gradient")
            continue
        around = _unit_around(calls[place].node, outputs, windows[: place + 1])
        where = f"between {units[place]} and {units[place + 1]}"
        found.append("" if around is None else f"what {units[around]} gives is used behind the place {where}, too")
    return found
