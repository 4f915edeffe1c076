"""DeepSeek's example on any number of processes, with CPUs or GPUs: `python example.py [ranks]`.

Starts its ranks, trains a step by DualPipe and one by DualPipeV, and compares losses and gradients with those of the
whole model in one process.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import dualpipe

HIDDEN, SEQUENCE, ROWS, CHUNKS = 128, 32, 3, 20


class Stage(nn.Module):
    def __init__(self, number: int):
        super().__init__()
        torch.manual_seed(number)
        self.linear1 = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.linear2 = nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x):
        return x + self.linear2(F.gelu(self.linear1(x)))


def whole_model(stages: int, x, y, chunks: int, device):
    model = nn.Sequential(*(Stage(number) for number in range(stages))).to(device, torch.float64)
    losses = []
    for input, target in zip(x.tensor_split(chunks), y.tensor_split(chunks)):
        loss = F.mse_loss(model(input), target)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), [[p.grad for p in stage.parameters()] for stage in model]


def difference(a, b) -> float:
    """0 where the two point the same way, and are as long."""
    return (1 - 2 * (a * b).sum() / (a.square().sum() + b.square().sum())).item()


def train(rank: int, ranks: int, port: int) -> None:
    device = torch.device("cpu")
    if torch.cuda.device_count() >= ranks:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(minutes=2)
    )
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(CHUNKS * ROWS, SEQUENCE, HIDDEN, generator=generator, dtype=torch.float64).to(device)
        for _ in range(2)
    )
    is_first, is_last = rank == 0, rank == ranks - 1

    losses, gradients = whole_model(ranks, x, y, CHUNKS, device)
    modules = [Stage(rank).to(device, torch.float64), Stage(ranks - 1 - rank).to(device, torch.float64)]
    pipe = dualpipe.DualPipe(modules, reduce_gradients=True)
    # Each end passes half of the batch, and the labels of the other half, whose chain ends there.
    given, labels = (x.chunk(2)[is_last], y.chunk(2)[is_first]) if is_first or is_last else (None, None)
    loss, _ = pipe.step(given, num_chunks=CHUNKS, criterion=F.mse_loss, labels=[labels])
    if loss is not None:
        assert torch.equal(loss, losses.chunk(2)[is_first])
    check("DualPipe", rank, modules, [gradients[rank], gradients[ranks - 1 - rank]])

    losses, gradients = whole_model(2 * ranks, x, y, CHUNKS, device)
    modules = [Stage(rank).to(device, torch.float64), Stage(2 * ranks - 1 - rank).to(device, torch.float64)]
    pipe = dualpipe.DualPipeV(modules)
    loss, _ = pipe.step(
        x if is_first else None, num_chunks=CHUNKS, criterion=F.mse_loss, labels=[y] if is_first else []
    )
    if loss is not None:
        assert torch.equal(loss, losses)
    check("DualPipeV", rank, modules, [gradients[rank], gradients[2 * ranks - 1 - rank]])
    dist.destroy_process_group()


def check(name: str, rank: int, modules, expected) -> None:
    worst = max(
        difference(p.grad, gradient)
        for module, gradients in zip(modules, expected)
        for p, gradient in zip(module.parameters(), gradients)
    )
    assert worst < 1e-13, worst
    print(f"{name}, rank {rank}: losses and gradients are the whole model's", flush=True)


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    store = dist.TCPStore("127.0.0.1", 0, 1, True)  # finds a free port
    port = store.port
    del store
    mp.spawn(train, args=(ranks, port), nprocs=ranks)


if __name__ == "__main__":
    main()
