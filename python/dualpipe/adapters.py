"""Models as partitions that know each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ._sim import InputError
from ._split_stage import SplitStage
from .splitting import Split, split


class Partitions(Sequence[SplitStage]):
    """The stages of a model. In `DualPipe([partitions[rank], partitions[rank]])`, where the second one stands for the
    other direction, the layers of rank P-1-r are taken for it; in DualPipeV, with 2P partitions, those of stage
    2P-1-r."""

    def __init__(self, stages: Split):
        self.stages = stages
        for each in stages:
            each.__dict__["_partitions"] = self

    def __getitem__(self, index):
        return self.stages[index]

    def __len__(self) -> int:
        return len(self.stages)

    def __repr__(self) -> str:
        return repr(self.stages)


def other_direction(modules: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """The two modules of a rank, with the mirrored partition for one that is given twice. `count`: how many
    partitions all ranks have together."""
    first, second = modules
    partitions = getattr(first, "_partitions", None)
    if first is not second or partitions is None:
        return [first, second]
    if len(partitions) != count:
        raise InputError(f"the model has {len(partitions)} partitions, and the pipeline takes {count}: make as many")
    return [first, partitions[count - 1 - first._number]]


class ModelAdapter:
    """What get_model_adapter() returns."""

    def __init__(self, model: nn.Module, example: Any = None):
        self.model = model
        self._example = example

    def partition(self, num_partitions: int, *, example: Any = None, **options: Any) -> Partitions:
        """As dualpipe.split(), with its options. `example`: unless given, made of what the model says of itself:
        `example_input_array`, `dummy_inputs`, or the size of a first linear layer."""
        given = example if example is not None else self._example
        found = given if given is not None else example_of(self.model)
        return Partitions(split(self.model, num_partitions, found, **options))


def example_of(model: nn.Module) -> Any:
    """Two rows of what a model takes, where it says what that is."""
    import torch

    for name in ("example_input_array", "dummy_inputs"):
        try:
            example = getattr(model, name, None)
        except Exception:  # a property that is not made for this model
            continue
        if example is not None:
            return example
    first = next((m for m in model.modules() if not any(True for _ in m.children())), None)
    if isinstance(model, nn.Sequential) and isinstance(first, nn.Linear):
        return torch.zeros(2, first.in_features, dtype=first.weight.dtype, device=first.weight.device)
    raise InputError(
        f"what {type(model).__name__} is called with is not known; give get_model_adapter(model, example=...) a batch "
        "of two rows"
    )


def get_model_adapter(model: nn.Module, example: Any = None) -> ModelAdapter:
    """For `get_model_adapter(model).partition(num_partitions=4)`."""
    return ModelAdapter(model, example)
