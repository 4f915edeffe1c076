"""DeepSeek's `dualpipe.utils`: what layers use that let their weight gradients wait."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _exec
from .profiler import enable_profiling, get_profiler

__all__ = ["WeightGradStore", "enable_profiling", "get_profiler", "run_backward"]


class WeightGradStore:
    """Where a layer's backward leaves its weight gradient while `enabled`, as DeepSeek's DualPipe has it:

        if WeightGradStore.enabled:
            WeightGradStore.put(compute_weight_gradient)
        else:
            compute_weight_gradient()

    A pipeline sets `enabled` in I alone, and calls what was put there in the W of the same stage and micro-batch.
    Outside of a pipeline put(), flush() and pop() work as a queue of lists, as DeepSeek's do.
    """

    enabled: bool = False
    cache: list[Callable[[], None]] = []
    funcs_queue: queue.Queue = queue.Queue()

    @classmethod
    def put(cls, func: Callable[[], None]) -> None:
        if not _exec.defer(func):
            cls.cache.append(func)

    @classmethod
    def flush(cls) -> None:
        cls.funcs_queue.put(cls.cache)
        cls.cache = []

    @classmethod
    def pop(cls) -> None:
        if cls.funcs_queue.empty():
            raise RuntimeError("WeightGradStore.pop(): nothing was flushed")
        for func in cls.funcs_queue.get():
            func()

    @classmethod
    def clear(cls) -> None:
        cls.cache = []
        cls.funcs_queue = queue.Queue()


def run_backward(tensors: Sequence[Tensor], grad_tensors: Sequence[Tensor | None]) -> None:
    """Backward from `tensors`, whose gradients are given; those of leaves are added to their .grad."""
    torch.autograd.backward(list(tensors), list(grad_tensors))
