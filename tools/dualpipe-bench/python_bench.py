#!/usr/bin/env python3
"""What training in Python costs beside the stages themselves, in figures that docs/speed.md has.

    tools/dualpipe-bench/python_bench.py [--deepseek FOLDER] [--repetitions N]

empty     one process: a step of stages that do nothing, per op, beside the same calls from a loop in Python
deepseek  two processes over gloo: CPU time per op of DualPipe, beside DeepSeek's own code, of which FOLDER is a checkout
          (github.com/deepseek-ai/DualPipe)
pytorch   two processes over gloo: time of a step of 1F1B and of interleaved, beside torch.distributed.pipelining

What is compared runs in turn, step for step, in the same processes; figures are medians. The stages are small, so that
little else counts. PYTHONPATH has to have this package: build/release/python.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

HIDDEN, ROWS = 32, 4


class Empty(nn.Module):
    def forward(self, x):
        return x


class Scale(nn.Module):
    """The least that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


class Layers(nn.Module):
    """Two layers, as in DeepSeek's example."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


def cpu_time() -> float:
    """Of this process, all of its threads, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def in_turn(runs: dict[str, Callable[[], object]], repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """The median of each one's time, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 3):
        for name, run in runs.items():
            if dist.is_initialized():
                dist.barrier()
            begin = clock()
            run()
            if repetition >= 3:  # before that shapes are learnt, and connections made
                taken[name].append(clock() - begin)
    return {name: statistics.median(each) for name, each in taken.items()}


def report(what: str, times: dict[str, float], parts: int, unit: str) -> None:
    """In one write, as another rank prints, too."""
    ours, other = times.values()
    of_each = ", ".join(f"{name} {seconds / parts * 1e6:.0f} us {unit}" for name, seconds in times.items())
    print(f"{what}: {of_each}: {ours / other:.2f} times\n", end="", flush=True)


def batch(micro_batches: int) -> torch.Tensor:
    return torch.ones(micro_batches * ROWS, HIDDEN)


# --- empty


def bench_empty(repetitions: int) -> None:
    import dualpipe

    micro_batches = 1000
    x = torch.ones(micro_batches, 1)
    pieces = x.tensor_split(micro_batches)
    module = Empty()
    pipe = dualpipe.Pipeline(module, "1f1b", micro_batches)

    def by_hand() -> list:
        return [module(each) for each in x.tensor_split(micro_batches)]

    with torch.no_grad():
        pipe.step(x, return_outputs=False)
        runner, places = pipe._runner, [[each] for each in pieces]
        times = in_turn(
            {
                "step()": lambda: pipe.step(x, return_outputs=False),
                "its loop": lambda: runner.step(places, 1.0, False),
                "a loop in Python": by_hand,
            },
            repetitions,
            time.perf_counter,
        )
    for name, seconds in times.items():
        print(f"empty: {name}: {seconds / micro_batches * 1e6:.2f} us per op")


# --- deepseek


def load_deepseek(folder: str):
    """Their package, which has the name of ours; patched for a CPU."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "dualpipe"}
    sys.path.insert(0, folder)
    try:
        theirs = importlib.import_module("dualpipe")
        comm = importlib.import_module("dualpipe.comm")
    finally:
        sys.path.remove(folder)
        for name in list(sys.modules):
            if name.split(".")[0] == "dualpipe":
                del sys.modules[name]
        sys.modules.update(ours)
    if not hasattr(comm, "TENSOR_SHAPES"):
        raise SystemExit(f"{folder} is not a checkout of DeepSeek's DualPipe")
    torch.cuda.current_device = lambda: "cpu"
    comm.build_from_tensor_shapes = lambda: [
        torch.empty(shape, dtype=comm.TENSOR_DTYPE, requires_grad=True) for shape in comm.TENSOR_SHAPES
    ]
    return theirs


def bench_deepseek(rank: int, folder: str, repetitions: int) -> None:
    import dualpipe

    theirs = load_deepseek(folder)
    theirs.set_p2p_tensor_shapes([(ROWS, HIDDEN)])
    theirs.set_p2p_tensor_dtype(torch.float32)
    chunks = 20
    x = batch(chunks // 2)
    ops = 2 * chunks  # an F and a B of each micro-batch; W as a part of its B
    for kind in (Scale, Layers):
        runs = {}
        for name, package in [("ours", dualpipe), ("DeepSeek's", theirs)]:
            pipe = package.DualPipe([kind(), kind()])
            runs[name] = lambda pipe=pipe: pipe.step(x, num_chunks=chunks, criterion=F.mse_loss, labels=[x])
        report(f"deepseek: {kind.__name__}, rank {rank}", in_turn(runs, repetitions, cpu_time), ops, "CPU per op")


# --- pytorch


def bench_pytorch(rank: int, repetitions: int) -> None:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

    import dualpipe

    micro_batches = 8
    x = batch(micro_batches)
    for name, numbers in [("1f1b", [rank]), ("interleaved", [rank, rank + 2])]:
        modules = [Layers() for _ in numbers]
        total = 2 * len(numbers)
        stages = [PipelineStage(m, n, total, torch.device("cpu")) for m, n in zip(modules, numbers)]
        if name == "1f1b":
            schedule = Schedule1F1B(stages[0], micro_batches, loss_fn=F.mse_loss)
        else:
            schedule = ScheduleInterleaved1F1B(stages, micro_batches, loss_fn=F.mse_loss)
        pipe = dualpipe.Pipeline(modules, name, micro_batches)

        def theirs() -> None:
            if rank == 0:
                schedule.step(x)
            else:
                schedule.step(target=x, losses=[])

        times = in_turn(
            {
                "ours": lambda: pipe.step(x, criterion=F.mse_loss, labels=x, loss_scale=1 / micro_batches),
                "PyTorch's": theirs,
            },
            repetitions,
            time.perf_counter,
        )
        report(f"pytorch: {name}, rank {rank}", times, 1, "per step")


# ---


def process(rank: int, port: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    gc.disable()
    function(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def on_two_ranks(function: Callable, *arguments) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    mp.spawn(process, args=(port, function, arguments), nprocs=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepseek", metavar="FOLDER", help="a checkout of DeepSeek's DualPipe")
    parser.add_argument("--repetitions", type=int, default=50, metavar="N", help="steps of each (default: 50)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench_empty(arguments.repetitions)
    on_two_ranks(bench_pytorch, arguments.repetitions)
    if arguments.deepseek:
        on_two_ranks(bench_deepseek, os.path.abspath(arguments.deepseek), arguments.repetitions)


if __name__ == "__main__":
    main()
