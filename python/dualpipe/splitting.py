"""Splits a model into the stages of a pipeline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import _recording, _split_costs
from ._balance import balanced, unit_costs
from ._recording import Recording, all_trained, leaves_of, tensors_in, undisturbed
from ._sim import Costs, InputError, Schedule
from ._split_inputs import Inputs, passed, received
from ._split_stage import Form, SplitStage
from ._shapes_alone import run_by_shapes


def split(
    model: nn.Module,
    stages: int,
    example: Any,
    *,
    cut: Sequence[str] | None = None,
    balance: str | Sequence[float] = "flops",
    forward: Callable[..., Any] | None = None,
) -> Split:
    """Splits a model into stages for a Pipeline, each of them an nn.Module.

        stages = dualpipe.split(model, 4, example=batch)
        print(stages.describe())
        pipe = stages.pipeline("zb1p", microbatches=16)            # this rank's

    The model's own forward runs on every stage, with the modules of other stages replaced. Nothing is traced; the model
    is not changed, and the stages hold its own parameters under its own names. A model on the meta device, which has
    no weights yet, is split by the shapes of its tensors alone; `.pipeline(weights=...)` then gives each rank its own.

    Args:
        example: what the model is called with: a tensor, a tuple of arguments, or a dictionary of keywords. All tensors
            in it have a row for each element of the batch; two rows are enough. How many rows there are, and how long
            sequences of tokens are, may be different later.
        cut: the module that each stage but the first begins with, by name; unless given, where stages cost the same.
        balance: what they cost: "flops" (floating point operations of matrix products, convolutions and attention in
            the example), "parameters", "time" (of the units in the example's forward, measured by the first process for
            all, so that all have to call this), or a list with a cost for each unit (`.units` has their names).
        forward: what runs the model, `model` itself unless given.

    Raises InputError, with the reason, where a model cannot be split in this way: nothing that a module before the
    cut has computed may be used behind it, but for the one tensor that crosses.
    """
    return Split(model, stages, example, cut, balance, forward or model)


class _Reads(TorchDispatchMode):
    """Notes which of the tensors are read, not only looked at."""

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self._of_storage = {t.untyped_storage()._cdata: i for i, t in enumerate(tensors)}
        self.found: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = func._schema.arguments[0].alias_info if func._schema.arguments else None
        is_view = first is not None and not first.is_write
        if not is_view and func.namespace != "prim":  # which asks for the device, say
            for each in tensors_in([list(args), kwargs or {}]):
                found = self._of_storage.get(each.untyped_storage()._cdata)
                if found is not None:
                    self.found.add(found)
        return func(*args, **(kwargs or {}))


def _are_close(a: Tensor, b: Tensor) -> bool:
    """Kernels may depend on strides, which messages do not keep."""
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True)


def _are_alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


@contextlib.contextmanager
def _without_cache(model: nn.Module):
    """A cache of keys and values would be one of other stages' layers, too."""
    configs = [c for c in (getattr(m, "config", None) for m in model.modules()) if getattr(c, "use_cache", False)]
    for each in configs:
        each.use_cache = False
    try:
        yield
    finally:
        for each in configs:
            each.use_cache = True


class Split(Sequence[SplitStage]):
    """The stages of a model, in their order."""

    def __init__(self, model, stages, example, cut, balance, forward):
        if stages < 1:
            raise InputError(f"{stages} stages: there has to be one at least")
        if hasattr(model, "_orig_mod"):
            raise InputError("the model is compiled: split it first, and compile the modules in it")
        self.model: nn.Module = model
        self._inputs = Inputs(example, forward)
        self.has_weights: bool = not any(p.is_meta for p in model.parameters())
        with undisturbed(model), contextlib.nullcontext() if self.has_weights else run_by_shapes(model, self._inputs):
            self._names: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
            self._analyse(stages, cut, balance)
        self._names = dict(model.named_parameters(remove_duplicate=False))
        self._stages = [SplitStage(self, number) for number in range(stages)]

    # --- what is known of the model

    @property
    def units(self) -> list[str]:
        """The modules between which it may be cut, in the order in which they are called."""
        return self._units

    @property
    def cuts(self) -> list[str]:
        """The module that each stage but the first begins with."""
        return [self._units[each] for each in self.bounds[1:-1]]

    @property
    def device(self) -> torch.device:
        of_example = self._inputs.example[0].device
        return next((p.device for p in self._names.values() if not p.is_meta), of_example)

    @property
    def shared(self) -> dict[str, list[int]]:
        """Parameters that several stages hold, by their first name, and which stages: tied weights say. Each of these
        adds its part of the gradient."""
        stages: dict[int, set[int]] = {}
        for name, parameter in self._names.items():
            stages.setdefault(id(parameter), set()).update(self.holders[name])
        first = {id(p): name for name, p in reversed(self._names.items())}
        return {first[key]: sorted(held) for key, held in stages.items() if len(held) > 1}

    def _analyse(self, stages: int, cut, balance) -> None:
        inputs, model = self._inputs, self.model
        with all_trained(model):
            recording = _recording.record(model, lambda: self.call(inputs.example, {}))
            self._units = _recording.units_of(model, recording)
            why_not = _recording.obstacles(self._units, recording)
        sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in self._units}
        self._flops = [recording.calls[each][0].flops for each in self._units]
        if cut is not None:
            self.bounds = [0, *self._named_cuts(stages, cut, why_not), len(self._units)]
        else:
            costs = unit_costs(balance, self._units, recording, sizes, self._unit_seconds)
            found = balanced(costs, stages, [i + 1 for i, reason in enumerate(why_not) if not reason])
            if found is None:
                raise InputError(self._too_few(stages, why_not))
            self.bounds = [0, *found, len(self._units)]
        self.forms = self._forms(recording)
        del recording
        self._find_holders(stages)

    def _unit_seconds(self) -> list[float]:
        if not self.has_weights:
            raise InputError('balance="time": the model has no weights here (device meta), so nothing can be measured')
        forward = lambda: self.call(self._inputs.example, {})  # noqa: E731
        found = [_split_costs.unit_seconds(self.model, self._units, forward, self.device)]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(found)
        return found[0]

    def _too_few(self, stages: int, why_not: list[str]) -> str:
        name = type(self.model).__name__
        good = [self._units[i + 1] for i, reason in enumerate(why_not) if not reason]
        text = (
            f"{name} cannot be split into {stages} stages: of the {len(why_not)} places between its {len(self._units)} "
            f"units {len(good)} can be cut"
        )
        text += f", before {', '.join(good)}" if good else ""
        reasons = [each for each in why_not if each]
        return f"{text}. {reasons[0][0].upper()}{reasons[0][1:]}" if reasons else text

    def _named_cuts(self, stages: int, cut: Sequence[str], why_not: list[str]) -> list[int]:
        if len(cut) != stages - 1:
            raise InputError(f"{stages} stages are cut at {stages - 1} modules, and cut has {len(cut)}")
        good = [i + 1 for i, reason in enumerate(why_not) if not reason]
        found: list[int] = []
        for name in cut:
            if name not in self._units:
                raise InputError(f"cut at {name}: one can cut before {', '.join(self._units[i] for i in good)}")
            place = self._units.index(name)
            if found and place <= found[-1]:
                raise InputError(f"cut at {name}: the forward calls it before {self._units[found[-1]]}")
            if place not in good:
                nearest = min(good, key=lambda i: abs(i - place), default=None)
                instead = "" if nearest is None else f"; the nearest place is before {self._units[nearest]}"
                reason = why_not[place - 1] if place else "it is the first module that the forward calls"
                raise InputError(f"cut at {name}: {reason}{instead}")
            found.append(place)
        return found

    def _forms(self, recording: Recording) -> dict[str, Form]:
        """What units return, at any number of rows and at any length, where a second run shows how it depends on it."""
        inputs, other, at = self._inputs, None, None
        shorter = inputs.shortened()
        self._any_length = shorter is not None
        if shorter is not None:
            try:
                with torch.no_grad(), undisturbed(self.model):
                    other = _recording.record(self.model, lambda: self.call(shorter, {}))
                at = inputs.sizes_of(shorter)
            except Exception:  # one length alone, then
                self._any_length = False
                other = None
        forms = {}
        for name in self._units:
            output = recording.calls[name][0].output
            second = other.calls[name][0].output if other is not None and name in other.calls else None
            forms[name] = Form(output, inputs.sizes, second, at if second is not None else None)
        return forms

    # --- which stage holds what

    def _find_holders(self, stages: int) -> None:
        """A unit's parameters are its stage's; others are on the stages that need them, which a run shows."""
        stage_of = {name: s for s in range(stages) for name in self._units[self.bounds[s] : self.bounds[s + 1]]}
        everywhere = set(range(stages))
        self.holders: dict[str, set[int]] = {}
        for name in self._names:
            unit = next((name[:i] for i, c in enumerate(name) if c == "." and name[:i] in stage_of), None)
            self.holders[name] = everywhere if unit is None else {stage_of[unit]}
        self.outside_units = {name for name, held in self.holders.items() if held is everywhere}
        self.reads = [set(range(len(self._inputs.names))) for _ in range(stages)]
        was_training = self.model.training
        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        try:
            self._stages = [SplitStage(self, number) for number in range(stages)]
            with torch.no_grad():
                expected = tensors_in(self.call(self._inputs.example, {}))
            with all_trained(self.model):
                outputs, used = self._run_watched()
            self._check_equal(outputs, expected)
            self._settle(used, everywhere)
            if self.outside_units and stages > 1:
                self._stages = [SplitStage(self, number) for number in range(stages)]
                with torch.no_grad():
                    self._check_equal(self._run_all(), expected)
        finally:
            for module, mode in modes:
                module.training = mode
            self.model.training = was_training

    def _run_watched(self) -> tuple[list[Tensor], list[set[int]]]:
        """The example through all stages: outputs, and by stage the ids of parameters that it needs."""
        values: list = list(self._inputs.example)
        used, reads = [], []
        for stage in self._stages:
            given = values if stage.is_first else [values[0].detach().requires_grad_().clone(), *values[1:]]
            own = given if stage.is_first else given[1:]
            with _Reads(own) as watched:
                output = stage(*given)
            values = [output] if isinstance(output, Tensor) else output
            used.append(leaves_of(values if stage.is_last else values[:1]))
            reads.append(watched.found)
        later: set[int] = set()
        for number in reversed(range(len(reads))):
            later |= reads[number]
            self.reads[number] = set(later)
        return values, used

    def _run_all(self) -> list[Tensor]:
        values: Any = list(self._inputs.example)
        for stage in self._stages:
            values = stage(*values)
        return tensors_in(values)

    def _check_equal(self, got: list[Tensor], expected: list[Tensor]) -> None:
        are_equal = _are_close if self.has_weights else _are_alike
        if len(got) != len(expected) or not all(map(are_equal, got, expected)):
            raise InputError(
                f"{type(self.model).__name__} split before {', '.join(self.cuts)} does not compute what the whole "
                "model does: its forward uses something of the modules before a cut in a way that autograd does not "
                "show. Cut elsewhere"
            )

    def _settle(self, used: list[set[int]], everywhere: set[int]) -> None:
        for name, parameter in self._names.items():
            if name in self.outside_units:
                held = {s for s, ids in enumerate(used) if id(parameter) in ids}
                self.holders[name] = held or ({0} if parameter.is_floating_point() else everywhere)
        first = {id(p): name for name, p in reversed(self._names.items())}
        for stage, ids in enumerate(used):
            held = {id(p) for name, p in self._names.items() if stage in self.holders[name]}
            for each in (ids & first.keys()) - held:
                self.holders[first[each]] = self.holders[first[each]] | {stage}

    # --- called by the stages

    def call(self, inputs: Sequence[Tensor], constants: dict) -> Any:
        with _without_cache(self.model):
            return self._inputs.call(inputs, constants)

    def sizes_of(self, inputs: Sequence[Tensor]):
        return self._inputs.sizes_of(inputs)

    def checked(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        names = self._inputs.names
        if len(given) != len(names):
            raise InputError(f"the first stage takes {', '.join(names)}, {len(names)} tensors, and got {len(given)}")
        length = self.sizes_of(given).length
        if not self._any_length and length != self._inputs.sizes.length:
            raise InputError(
                f"the model was split with sequences of length {self._inputs.sizes.length}, and runs with no others; "
                f"for {length}, split it with such an example"
            )
        return given

    def passed_on(self, number: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [passed(each, i in self.reads[number + 1]) for i, each in enumerate(inputs)]

    def restored(self, number: int, given: Sequence[Tensor]) -> list[Tensor]:
        return [received(each, i in self.reads[number]) for i, each in enumerate(given)]

    # --- for the user

    @overload
    def __getitem__(self, index: int) -> SplitStage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SplitStage]: ...
    def __getitem__(self, index):
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """What step() takes of a batch that is made as the example was: `pipe.step(*stages.inputs(batch))`."""
        return self._inputs.taken_from(batch)

    @staticmethod
    def loss(*outputs: Tensor) -> Tensor:
        """The criterion for models that compute their loss: it is the first of their outputs."""
        return outputs[0]

    def pipeline(self, schedule: str | os.PathLike[str] | Schedule, microbatches: int | None = None, **options: Any):
        """This rank's ModelPipeline, by a schedule of as many stages; with the options of that class."""
        from .model_pipeline import ModelPipeline

        return ModelPipeline(self, schedule, microbatches, **options)

    def describe(self) -> str:
        """A table: of each stage its modules, parameters, and share of the operations."""
        rows = [("stage", "modules", "parameters", "flops")]
        total = sum(self._flops) or 1
        for number, stage in enumerate(self._stages):
            begin, end = self.bounds[number : number + 2]
            names = self._units[begin] if end == begin + 1 else f"{self._units[begin]} ... {self._units[end - 1]}"
            parameters = sum(p.numel() for p in stage.parameters())
            rows.append((str(number), names, f"{parameters:,}", f"{sum(self._flops[begin:end]) / total:.1%}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{type(self.model).__name__} in {len(self)} stages"]
        for row in rows:
            left = [row[0].rjust(widths[0]), row[1].ljust(widths[1])]
            lines.append("  ".join([*left, row[2].rjust(widths[2]), row[3].rjust(widths[3])]))
        lines += [f"{name} is on stages {', '.join(map(str, held))}" for name, held in self.shared.items()]
        return "\n".join(lines)

    def costs(self, repeats: int = 3) -> Costs:
        """What the stages take of a micro-batch of the example's size, measured here: for dualpipe.simulate(),
        table(), ..."""
        return _split_costs.measured(self, repeats)

    def __repr__(self) -> str:
        return self.describe()
