"""Two pipelines of two ranks each in one world: `torchrun --nproc-per-node 4 two_pipelines.py`.

Each is over a process group of its own. Their replicas of the model see different data; the gradients are averaged
across, as DistributedDataParallel does.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import dualpipe


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pipelines = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    replica, number = divmod(rank, 2)

    torch.manual_seed(number)
    stage = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    module = nn.parallel.DistributedDataParallel(stage, process_group=across[number])
    pipe = dualpipe.Pipeline(module, "zb1p", microbatches=8, process_group=pipelines[replica])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    torch.manual_seed(replica)
    x = torch.randn(64, 32)
    for step in range(5):
        optimizer.zero_grad()
        loss, _ = pipe.step(x, criterion=F.mse_loss, labels=x.sin(), loss_scale=1 / 8)
        optimizer.step()
        if loss is not None:
            print(f"replica {replica}, step {step}: loss {loss.mean().item():.4f}", flush=True)
    total = sum(p.double().sum() for p in stage.parameters()).detach()
    sums = [torch.zeros_like(total) for _ in range(2)]
    dist.all_gather(sums, total, group=across[number])
    assert torch.equal(sums[0], sums[1]), "the replicas are the same"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
