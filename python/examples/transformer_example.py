"""A transformer learns Python's manual, letter by letter: `python transformer_example.py --num-gpus 2`.

The model is an ordinary one. dualpipe.split() makes the stages; each process holds its own, trains it, and the last
line is a picture of what they did when.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from launch import characters, launch, options
from torch import nn

import dualpipe

WIDTH, LENGTH, ROWS = 64, 64, 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.to_heads = nn.Linear(WIDTH, 3 * WIDTH)
        self.of_heads = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.to_heads(self.norms[0](x)).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.of_heads(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(96, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 96, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.head.weight = self.tokens.weight

    def forward(self, tokens, labels):
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def train(given: argparse.Namespace) -> None:
    dist.init_process_group("nccl" if given.device == "cuda" else "gloo")
    text, order = characters(), torch.Generator().manual_seed(1)

    def batch(rows: int) -> dict[str, torch.Tensor]:
        begins = torch.randint(0, len(text) - LENGTH - 1, (rows,), generator=order)
        rows_of_text = torch.stack([text[i : i + LENGTH + 1] for i in begins])
        return {"tokens": rows_of_text[:, :-1].to(given.device), "labels": rows_of_text[:, 1:].to(given.device)}

    torch.manual_seed(0)
    model = Transformer(layers=4 * given.num_gpus).to(given.device)
    pipe = dualpipe.ModelPipeline.of(model, given.schedule, given.microbatches, batch(2))
    pipe.release_others()
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=3e-3)
    speaks = dist.get_rank() == 0
    if speaks:
        print(pipe.stages.describe(), flush=True)
    for step in range(given.steps):
        optimizer.zero_grad()
        with dualpipe.profile() as measured:
            loss, _ = pipe.step(batch(ROWS))
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        if speaks and (step % 10 == 0 or step == given.steps - 1):
            print(f"step {step}: loss {loss:.4f}", flush=True)
    if speaks:
        print(measured.timeline.gantt())
    dist.destroy_process_group()


if __name__ == "__main__":
    launch(train, options(__doc__.splitlines()[0]).parse_args())
