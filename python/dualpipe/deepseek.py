"""DeepSeek's classes (github.com/deepseek-ai/DualPipe), over Pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._sim import InputError
from .adapters import other_direction
from .pipeline import Losses, Outputs, Pipeline


def set_p2p_tensor_shapes(shapes: list[tuple[int, ...]]) -> None:
    """Accepted, and unnecessary: what messages look like is learnt in the first step."""


def set_p2p_tensor_dtype(dtype: torch.dtype) -> None:
    """Accepted, and unnecessary: what messages look like is learnt in the first step."""


class _Both(nn.Module):
    """What the two classes share."""

    _schedule: str
    _partitions: int  # of a model, for each rank

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        reduce_gradients: bool = False,
        timeout: float | None = None,
    ):
        super().__init__()
        modules = list(modules)
        if len(modules) != 2:
            raise InputError(f"{type(self).__name__} takes the two modules of this rank, and not {len(modules)}")
        group = process_group
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        modules = other_direction(modules, self._partitions * (1 if group is None else group.size()))
        self.module = nn.ModuleList(modules)
        self.batch_dim = batch_dim
        self._options = dict(
            batch_dim=batch_dim,
            process_group=process_group,
            rank_mapping=rank_mapping,
            reduce_gradients=reduce_gradients,
            timeout=timeout,
        )
        self._pipelines: dict[int, Pipeline] = {}

    def forward(self, *inputs):
        raise RuntimeError(f"{type(self).__name__} is called by its step(), with the inputs of all micro-batches")

    def pipeline(self, num_chunks: int) -> Pipeline:
        """The pipeline that runs the steps of so many chunks."""
        if num_chunks not in self._pipelines:
            self._pipelines[num_chunks] = Pipeline(list(self.module), self._schedule, num_chunks, **self._options)
            self._pipelines[num_chunks]._detaches_outputs = False
        return self._pipelines[num_chunks]

    def step(
        self,
        *inputs: Tensor | None,
        num_chunks: int = 0,
        criterion: Callable[..., Tensor] | None = None,
        labels: Sequence[Tensor | None] = (),
        return_outputs: bool = False,
    ) -> tuple[Losses, Outputs]:
        """As Pipeline.step(). `num_chunks`: M, over both directions of DualPipe."""
        if num_chunks <= 0:
            raise InputError(f"num_chunks={num_chunks}: say how many micro-batches the step has")
        pipeline = self.pipeline(num_chunks)
        if torch.is_grad_enabled() and criterion is None and pipeline.ends_chain:
            raise InputError(
                f"rank {pipeline.rank} computes losses, and step() got no criterion; under torch.no_grad() it "
                "needs none"
            )
        loss, outputs = pipeline.step(*inputs, criterion=criterion, labels=labels, return_outputs=return_outputs)
        return (None if criterion is None else loss), outputs


class DualPipe(_Both):
    """DeepSeek's class: `modules` are this rank's layers of the two directions, those of rank r and of rank P-1-r.

    Rank 0 and the last one pass `inputs`, each for its direction, and the `labels` of the other one's inputs.
    `num_chunks` is even, and at least 2P; P is even. As in DeepSeek's code the gradients of the two copies of the
    layers are not summed, unless `reduce_gradients`.
    """

    _schedule = "dualpipe"
    _partitions = 1


class DualPipeV(_Both):
    """DeepSeek's class: `modules` are this rank's layers, those of stages r and 2P-1-r.

    Rank 0 passes `inputs` and `labels`. `num_chunks` is at least 2P.
    """

    _schedule = "dualpipev"
    _partitions = 2
