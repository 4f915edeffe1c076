"""DualPipeTrainer; see dualpipe.compat."""

from __future__ import annotations

import os
from typing import Any

from ._schedules import default_schedule
from ._sim import InputError
from .transformers import PipelineTrainer
from .utils import enable_profiling as begin_profiling
from .utils import get_profiler


class DualPipeTrainer(PipelineTrainer):
    """PipelineTrainer by DualPipe, or by DualPipeV on an odd number of ranks.

    Args:
        num_partitions: how many processes there are; to be checked.
        num_chunks: micro-batches of a step, over both directions.
        enable_profiling: each rank writes its last training step into `output_dir`/profiles, for ui.perfetto.dev.
    """

    def __init__(
        self,
        model: Any = None,
        num_partitions: int | None = None,
        num_chunks: int = 8,
        batch_dim: int = 0,
        enable_profiling: bool = False,
        **kwargs: Any,
    ):
        if batch_dim != 0:
            raise InputError(f"batch_dim={batch_dim}: the Trainer's batches have their rows in dimension 0")
        kwargs.setdefault("microbatches", num_chunks)
        schedule = kwargs.pop("schedule", None)
        super().__init__(model=model, schedule=schedule or "1f1b", **kwargs)
        ranks = self.args.world_size
        if num_partitions not in (None, ranks):
            raise InputError(f"num_partitions={num_partitions}, and there are {ranks} processes: give as many")
        self._schedule = schedule or default_schedule(ranks)
        self._profiles = enable_profiling

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if not self._profiles:
            return super().train(*args, **kwargs)
        begin_profiling(os.path.join(self.args.output_dir, "profiles"))
        result = super().train(*args, **kwargs)
        get_profiler().save_to_file(f"rank{self.args.process_index}.json")
        return result
