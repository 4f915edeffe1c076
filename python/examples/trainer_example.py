"""Hugging Face's Trainer over a pipeline: `python trainer_example.py --num-gpus 2`.

A small Llama learns Python's manual letter by letter. But for the class, and its two arguments, this is a script for
transformers.Trainer.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import transformers
from launch import characters, launch, options
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import dualpipe

LENGTH = 64


class Text(torch.utils.data.Dataset):
    def __init__(self, text: torch.Tensor) -> None:
        self.rows = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[row], "labels": self.rows[row]}


def train(given: argparse.Namespace) -> None:
    transformers.set_seed(0)
    text = characters()
    layers = 2 * given.num_gpus
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=32,
            max_steps=given.steps,
            learning_rate=3e-3,
            logging_steps=10,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=given.device == "cpu",
            ddp_backend="gloo" if given.device == "cpu" else "nccl",
        )
        trainer = dualpipe.transformers.PipelineTrainer(
            model=LlamaForCausalLM(config),
            args=args,
            train_dataset=Text(text[:-10_000]),
            eval_dataset=Text(text[-10_000:]),
            schedule=given.schedule,
            microbatches=given.microbatches,
        )
        with dualpipe.profile() as measured:
            trainer.train()
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(trainer.pipeline.stages.describe())
        print(f"eval_loss {metrics['eval_loss']:.4f}")
        print(measured.timeline.gantt())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    launch(train, options(__doc__.splitlines()[0]).parse_args())
