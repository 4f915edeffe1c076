"""Lightning's Trainer over a pipeline: `python lightning_example.py --num-gpus 2`.

The LightningModule is an ordinary one; the strategy divides it over the devices.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from launch import characters, device_of, options
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dualpipe

LENGTH, WIDTH = 48, 64


class NextLetter(L.LightningModule):
    """Says the next letter of some that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(96, 16)
        self.first = nn.Linear(16 * LENGTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(6)
        )
        self.head = nn.Linear(WIDTH, 96)

    def forward(self, letters):
        x = self.first(self.letters(letters).flatten(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def training_step(self, batch, batch_idx):
        letters, following = batch
        loss = F.cross_entropy(self(letters), following)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        letters, following = batch
        output = self(letters)
        self.log("val_loss", F.cross_entropy(output, following))
        self.log("val_accuracy", (output.argmax(-1) == following).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class Losses(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.is_global_zero and batch_idx % 20 == 0:
            print(f"step {batch_idx}: loss {trainer.callback_metrics['train_loss']:.4f}", flush=True)


def main(given: argparse.Namespace) -> None:
    device = device_of(given.device, given.num_gpus)
    if device == "cpu":
        torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    windows = characters()[:60_000].unfold(0, LENGTH + 1, 7)
    data = TensorDataset(windows[:, :-1].contiguous(), windows[:, -1].contiguous())
    training, validation = torch.utils.data.random_split(data, [0.9, 0.1])
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=given.num_gpus,
        strategy=dualpipe.lightning.PipelineStrategy(given.schedule, given.microbatches),
        max_epochs=1,
        max_steps=given.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses()],
    )
    with dualpipe.profile() as measured:
        trainer.fit(NextLetter(), DataLoader(training, 64, shuffle=True), DataLoader(validation, 64))
    if trainer.is_global_zero:
        print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
        print(measured.timeline.gantt())


if __name__ == "__main__":
    parser = options(__doc__.splitlines()[0])
    parser.set_defaults(steps=100)
    main(parser.parse_args())
