"""A convolutional network that tells shapes apart, over a pipeline: `python vision_example.py --num-gpus 2`.

Takes torchvision's ResNet-18 as it is; the pictures are drawn on the spot.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from launch import launch, options
from torch import Tensor, nn
from torchvision.models import resnet18

import dualpipe

SIZE, ROWS = 32, 32


def pictures(rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Discs, squares and rings, somewhere in a picture with noise."""
    kinds = torch.randint(0, 3, (rows,), generator=random)
    centers = torch.rand(rows, 2, 1, 1, generator=random) * 12 + 10
    size = torch.rand(rows, 1, 1, generator=random) * 4 + 5
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))
    distance = (grid - centers).norm(dim=1)
    square = (grid - centers).abs().amax(1) < size
    drawn = torch.stack([distance < size, square, (distance < size) & (distance > size - 2.5)], 1)
    shapes = drawn[torch.arange(rows), kinds].float()
    return shapes[:, None] + 0.3 * torch.randn(rows, 3, SIZE, SIZE, generator=random), kinds


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return F.cross_entropy(logits, labels), logits


def train(given: argparse.Namespace) -> None:
    dist.init_process_group("nccl" if given.device == "cuda" else "gloo")
    random = torch.Generator().manual_seed(1)
    speaks = dist.get_rank() == 0

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        images, kinds = pictures(rows, random)
        return images.to(given.device), kinds.to(given.device)

    torch.manual_seed(0)
    model = WithLoss(resnet18(num_classes=3)).to(given.device)
    pipe = dualpipe.ModelPipeline.of(model, given.schedule, given.microbatches, batch(2))
    pipe.release_others()
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    if speaks:
        print(pipe.stages.describe(), flush=True)
    for step in range(given.steps):
        optimizer.zero_grad()
        with dualpipe.profile() as measured:
            loss, _ = pipe.step(batch(ROWS))
        optimizer.step()
        if speaks and (step % 5 == 0 or step == given.steps - 1):
            print(f"step {step}: loss {loss:.4f}", flush=True)
    pipe.train(False)
    images, kinds = batch(64)
    with torch.no_grad():
        _, (logits,) = pipe.step((images, kinds), return_outputs=True)
    if speaks:
        print(f"right: {(logits.argmax(-1) == kinds).float().mean():.0%}")
        print(measured.timeline.gantt())
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = options(__doc__.splitlines()[0])
    parser.set_defaults(steps=25)
    launch(train, parser.parse_args())
