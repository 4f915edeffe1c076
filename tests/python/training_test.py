"""Training over several steps with an optimizer: the models and shapes of PyTorch's own tests of its schedules (fewer
micro-batches than ranks, uneven ones, parameters that nothing uses), for Pipeline."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe

HIDDEN = 8
NAMES = ["gpipe", "1f1b", "interleaved", "looped-bfs", "zb1p", "interleaved-zb", "zbv", "dualpipev"]


class MLP(nn.Module):
    def __init__(self, number):
        super().__init__()
        torch.manual_seed(number)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN).double()
        self.down = nn.Linear(2 * HIDDEN, HIDDEN).double()
        self.unused = nn.Linear(HIDDEN, HIDDEN).double()

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def train(step, modules):
    """Losses of three steps, and what they have made of the parameters."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(step())
        optimizer.step()
    return losses


def by_schedule(rank, name, micro_batches, rows):
    ranks = dist.get_world_size()
    schedule = dualpipe.schedule(name, ranks=ranks, microbatches=micro_batches)
    numbers = [stage for stage, each in enumerate(schedule.chains[0]) if each == rank]
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, HIDDEN, dtype=torch.float64, generator=generator) for _ in range(2))

    whole = [MLP(number) for number in range(schedule.stages)]

    def whole_step():
        losses = []
        for input, target in zip(x.tensor_split(micro_batches), y.tensor_split(micro_batches)):
            losses.append(F.mse_loss(nn.Sequential(*whole)(input), target))
            (losses[-1] / micro_batches).backward()
        return torch.stack(losses).detach()

    modules = [MLP(number) for number in numbers]
    pipe = dualpipe.Pipeline(modules, name, micro_batches)

    def step():
        return pipe.step(x, criterion=F.mse_loss, labels=y, loss_scale=1 / micro_batches)[0]

    expected, got = train(whole_step, whole), train(step, modules)
    if pipe.ends_chain:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    else:
        assert got == [None, None, None]
    for number, module in zip(numbers, modules):
        assert all(p.grad is None for p in module.unused.parameters())
        torch.testing.assert_close(module.state_dict(), whole[number].state_dict(), rtol=1e-12, atol=1e-13)


def all_of(rank):
    ranks = dist.get_world_size()
    for name in NAMES:
        for micro_batches, rows in [(ranks - 1, 2 * ranks), (2 * ranks, 4 * ranks + 3)]:
            if name == "dualpipev" and micro_batches < 2 * ranks:
                continue
            by_schedule(rank, name, micro_batches, rows)
    with pytest.raises(dualpipe.ShapeError, match="dualpipev"):
        dualpipe.Pipeline([MLP(0), MLP(1)], "dualpipev", ranks)


@pytest.mark.parametrize("ranks", [2, 4])
def test_training(ranks):
    worlds.values(worlds.run(ranks, all_of, timeout=250))
