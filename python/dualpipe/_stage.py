"""What one stage of this rank does in its ops; called by the loop in C++ (exec/replay)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import _exec
from ._sim import InputError
from .deferral import Deferral
from .utils import WeightGradStore


def as_list(outputs) -> list:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def joined(parts: list, dim: int) -> Tensor | None:
    if any(each is None for each in parts):
        return None
    return torch.cat(parts, dim) if parts[0].dim() else torch.stack(parts)


def text_of(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def texts_of(tensors: Sequence[Tensor | None]) -> str:
    return ", ".join(map(text_of, tensors)) or "nothing"


class ModuleStage:
    store = WeightGradStore

    def __init__(self, module: nn.Module, number: int, giver: str, is_last: bool, has_hook: bool, defers: bool):
        """`giver`: by whom it is given its inputs, if it does not begin a chain."""
        self.module = module
        self.is_replicated = isinstance(module, DistributedDataParallel)
        self.number = number
        self.giver = f"by {giver}" if giver else "as the inputs of the step"
        self.is_last = is_last
        self.has_hook = has_hook
        self.mode = Deferral() if defers else None
        trained = list(dict.fromkeys(p for p in module.parameters() if p.requires_grad))
        self.native = _exec.Stage(self, not giver, trained)
        self.begin(None, [], False)

    def begin(self, criterion: Callable | None, labels: Sequence, keeps_outputs: bool) -> None:
        """A step begins. `labels`: by micro-batch."""
        self.criterion = criterion
        self.labels = labels
        self.keeps_outputs = keeps_outputs
        self.finishes = self.is_last and (keeps_outputs or criterion is not None)
        self.outputs: dict[int, list] = {}

    # --- called by C++

    def run(self, micro_batch: int, inputs: list) -> object:
        try:
            if self.is_replicated:
                with self.module.no_sync():  # once, after the step
                    outputs = self.module(*inputs)
            else:
                outputs = self.module(*inputs)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"stage {self.number} was given {texts_of(inputs)} {self.giver}")
            raise
        return self.finish(micro_batch, as_list(outputs)) if self.finishes else outputs

    def overlap(self, micro_batch: int, inputs: list, back: ModuleStage, returned: list, gradients: list) -> object:
        """F and B as the module's own function runs them; `returned`: what the forward of `back` gave."""
        labels = self.labels_of(micro_batch)
        criterion = self.criterion if self.is_last else None
        loss1 = returned[0] if back.is_last else None
        pairs = [(t, g) for t, g in zip(returned, gradients) if g is not None] if loss1 is None else []
        outputs0, loss0 = type(self.module).overlapped_forward_backward(
            self.module,
            inputs,
            criterion,
            labels if criterion is not None else [],
            back.module,
            loss1,
            [t for t, _ in pairs],
            [g for _, g in pairs],
        )
        return self.finish(micro_batch, as_list(outputs0), loss0) if self.finishes else outputs0

    # ---

    def labels_of(self, micro_batch: int) -> list:
        return self.labels[micro_batch] if self.labels else []

    def finish(self, micro_batch: int, outputs: list, loss: Tensor | None = None) -> object:
        """What the end of a chain does with its outputs."""
        if self.keeps_outputs:
            self.outputs[micro_batch] = outputs
        if self.criterion is None:
            return outputs
        if loss is None:
            loss = self.criterion(*outputs, *self.labels_of(micro_batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"{loss.numel()} numbers" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"the criterion has to return the loss of a micro-batch, one number; it returned {kind}")
        return loss

    def joined_outputs(self, micro_batches: int, dim: int) -> list[Tensor | None]:
        """Those of all micro-batches, one after the other; None where one of them is."""
        columns = zip(*(self.outputs[m] for m in range(micro_batches)))
        return [joined(list(each), dim) for each in columns]
