"""Scripts that were written for DualPipe's adapters, profiler and classes for frameworks, as their README has them."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe


def environment(rank: int) -> None:
    ranks = str(dist.get_world_size())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    warnings.simplefilter("ignore")


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def adapter_and_profiler(rank, folder):
    from dualpipe import DualPipe, set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from dualpipe.adapters import get_model_adapter
    from dualpipe.utils import enable_profiling, get_profiler

    model = small_model()
    adapter = get_model_adapter(model)
    partitions = adapter.partition(num_partitions=2)
    set_p2p_tensor_shapes([(2, 8)])
    set_p2p_tensor_dtype(torch.float32)
    local_rank = dist.get_rank()
    local_module = partitions[local_rank]
    dualpipe_model = DualPipe([local_module, local_module])
    enable_profiling(log_dir=folder / "profiles")
    inputs, labels = torch.ones(8, 8), torch.zeros(8, 8)
    loss, outputs = dualpipe_model.step(inputs, num_chunks=8, criterion=F.mse_loss, labels=(labels,))
    profiler = get_profiler()
    profiler.print_summary()
    path = profiler.save_to_file(f"dualpipe_profile{rank}.json")
    dualpipe.profiler.active.clear()
    return loss, os.path.getsize(path)


def test_adapter_and_profiler(tmp_path) -> None:
    expected = F.mse_loss(small_model()(torch.ones(1, 8)), torch.zeros(1, 8)).item()
    for loss, size in worlds.values(worlds.run(2, adapter_and_profiler, tmp_path)):
        assert loss.tolist() == pytest.approx([expected] * 4) and size > 1000


def lightning(rank, folder):
    environment(rank)
    import lightning.pytorch as L
    from torch.utils.data import DataLoader, TensorDataset

    from dualpipe.compat import DualPipeLightningModule

    class YourLightningModule(DualPipeLightningModule):
        def __init__(self, model, learning_rate=1e-2):
            super().__init__(model=model, num_chunks=8)
            self.learning_rate = learning_rate

        def configure_optimizers(self):
            return torch.optim.Adam(self.dualpipe_wrapper.local_module.parameters(), lr=self.learning_rate)

        def criterion(self, outputs, targets):
            return F.mse_loss(outputs, targets)

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.flip(1)), 16)
    options = dict(accelerator="cpu", devices=2, max_epochs=8, logger=False, default_root_dir=folder)
    quiet = dict(enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(dualpipe.InputError, match='give the Trainer strategy="dualpipe", not DDPStrategy'):
        L.Trainer(**options, **quiet, strategy="ddp").fit(YourLightningModule(small_model()), loader)
    losses = []
    trainer = L.Trainer(**options, **quiet, strategy="dualpipe")
    module = YourLightningModule(small_model())
    for _ in range(2):
        trainer.fit(module, loader, loader)
        losses.append(float(trainer.callback_metrics["val_loss"]))
        trainer.fit_loop.epoch_progress.reset()
    return losses, trainer.strategy._schedule


def test_lightning(tmp_path) -> None:
    pytest.importorskip("lightning.pytorch")
    first, second = worlds.values(worlds.run(2, lightning, tmp_path, timeout=100))
    assert first == second and first[0][1] < first[0][0] < 1.5, first


def trainer(rank, folder):
    environment(rank)
    import transformers

    from dualpipe.compat import DualPipeTrainer

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = dict(vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    training_args = transformers.TrainingArguments(
        folder, max_steps=4, use_cpu=True, ddp_backend="gloo", report_to=[], disable_tqdm=True, logging_steps=1,
        learning_rate=1e-2, save_strategy="no",
    )
    train_dataset = [{"input_ids": list(range(i, i + 8)), "labels": list(range(i, i + 8))} for i in range(20)]
    trainer = DualPipeTrainer(
        model=model, args=training_args, train_dataset=train_dataset, num_chunks=8, enable_profiling=True
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    with pytest.raises(dualpipe.InputError, match="num_partitions=4, and there are 2 processes"):
        DualPipeTrainer(model=model, args=training_args, train_dataset=train_dataset, num_partitions=4)
    return losses, trainer.pipeline.schedule.name, (folder / "profiles" / f"rank{rank}.json").stat().st_size


def test_trainer(tmp_path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    for losses, schedule, size in worlds.values(worlds.run(2, trainer, tmp_path, timeout=100)):
        assert losses[-1] < losses[0] and schedule == "dualpipe" and size > 1000


def test_what_is_missing_is_named(monkeypatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from dualpipe import _missing

    def version(name):
        if name == "lightning":
            raise PackageNotFoundError(name)
        return "5.2.1"

    monkeypatch.setattr(_missing, "version", version)
    with pytest.raises(ImportError, match=r"lightning 2.6 or newer, which is not installed: pip install dualpipe\[l"):
        _missing.require("lightning", (2, 6), "lightning", "dualpipe.lightning")
    with pytest.raises(ImportError, match="needs transformers 5.24 or newer, and 5.2.1 is installed"):
        _missing.require("transformers", (5, 24), "transformers", "dualpipe.transformers")
