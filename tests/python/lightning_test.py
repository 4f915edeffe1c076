"""Lightning's Trainer over a pipeline, against the same Trainer in one process."""

from __future__ import annotations

import os
import resource
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from fsspec.implementations.local import LocalFileOpener
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

L = pytest.importorskip("lightning.pytorch")
safetensors = pytest.importorskip("safetensors.torch")

import dualpipe  # noqa: E402

DOUBLE = torch.float64


class Module(L.LightningModule):
    """Logs in all the ways; keeps what its validation has seen; a scheduler, two groups of parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(6))
        self.head = nn.Linear(12, 4)
        self.double()
        self.seen: list[float] = []

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        output = self(x)
        loss = F.cross_entropy(output, y)
        self.log("train_loss", loss, prog_bar=False)
        self.log_dict({"accuracy": (output.argmax(-1) == y).double().mean()}, on_step=False, on_epoch=True)
        return {"loss": loss, "largest": output.detach().mean()}

    def validation_step(self, batch):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).softmax(-1)

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(float(outputs))

    def configure_optimizers(self):
        groups = [
            {"params": [p for n, p in self.named_parameters() if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in self.named_parameters() if n.endswith("weight")], "weight_decay": 0.1},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader(shuffle: bool, rows: int = 42) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(42, 12, generator=generator, dtype=DOUBLE), torch.randint(0, 4, (42,), generator=generator)
    return DataLoader(TensorDataset(x[:rows], y[:rows]), 8, shuffle=shuffle)


class Recorded(L.Callback):
    def __init__(self):
        self.rows: list = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append((float(trainer.callback_metrics["train_loss"]), float(outputs["largest"])))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rows.append(optimizer.param_groups[0]["lr"])

    def on_validation_epoch_end(self, trainer, module):
        self.rows.append(float(trainer.callback_metrics["val_loss"]))

    def on_train_epoch_end(self, trainer, module):
        self.rows.append(float(trainer.callback_metrics["accuracy"]))


def trainer_of(folder: Path, pipeline: dict | None, recorded: L.Callback, **changes):
    warnings.simplefilter("ignore")
    options = dict(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        accumulate_grad_batches=2,
        gradient_clip_val=0.3,
        callbacks=[recorded, L.callbacks.ModelCheckpoint(folder, save_last=True, monitor="val_loss", save_top_k=-1)],
    )
    if pipeline is None:
        return L.Trainer(**{**options, "devices": 1, **changes})
    strategy = dualpipe.lightning.PipelineStrategy(**pipeline)
    return L.Trainer(**{**options, "devices": dist.get_world_size(), "strategy": strategy, **changes})


def as_torchrun(rank: int) -> None:
    ranks = str(dist.get_world_size())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


class Frozen(Module):
    """The first of two stages has nothing to train."""

    def __init__(self):
        super().__init__()
        self.layers[:4].requires_grad_(False)


def use(folder: Path, pipeline: dict | None, resume: str | None, kind: type = Module):
    files = (pipeline or {}).get("weights")
    with torch.device("meta" if files else "cpu"):
        recorded, module = Recorded(), kind()
    L.seed_everything(1, verbose=False)  # a module on the meta device has drawn no numbers
    trainer = trainer_of(folder, pipeline, recorded)
    trainer.fit(module, loader(True), loader(False), ckpt_path=resume)
    assert any(p.is_meta for p in module.parameters()) == bool(files), "what no rank had whole none has afterwards"
    state = torch.load(folder / "last.ckpt", weights_only=False)["state_dict"] if files else module.state_dict()
    weights = {name: tensor.clone() for name, tensor in state.items()}
    tested = trainer.test(module, loader(False), verbose=False)[0]
    predicted = torch.cat(trainer.predict(module, loader(False)))
    return recorded.rows + module.seen, weights, tested, predicted


def alone(_, folder: Path, resume: str | None, kind: type = Module):
    dist.destroy_process_group()
    return use(folder, None, resume, kind)


def together(rank: int, folder: Path, resume: str | None, pipeline: dict, kind: type = Module):
    as_torchrun(rank)
    return use(folder, pipeline, resume, kind)


def run_alone(folder, resume=None):
    return worlds.values(worlds.run(1, alone, folder, resume, timeout=150))[0]


def flat(rows: list) -> list[float]:
    return [each for row in rows for each in (row if isinstance(row, tuple) else (row,))]


def check(found, expected) -> None:
    rows, weights, tested, predicted = found
    assert flat(rows) == pytest.approx(flat(expected[0]), rel=1e-6)  # Lightning keeps what is logged in float32
    assert weights.keys() == expected[1].keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-9, atol=1e-11)
    assert tested == pytest.approx(expected[2], rel=1e-6)
    torch.testing.assert_close(predicted, expected[3], rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_alone(folder)


@pytest.mark.parametrize("ranks, schedule", [(2, "zb1p"), (2, "dualpipe"), (4, "1f1b"), (2, "dualpipev")])
def test_training(tmp_path, expected, ranks, schedule) -> None:
    folder, alone_found = expected
    pipeline = {"schedule": schedule, "microbatches": 2 * ranks}
    if ranks == 4:
        pipeline["weights"] = tmp_path / "weights.safetensors"
        safetensors.save_file(Module().state_dict(), pipeline["weights"])
    for found in worlds.values(worlds.run(ranks, together, tmp_path, None, pipeline, timeout=200)):
        check(found, alone_found)
    ours, theirs = (torch.load(path / "last.ckpt", weights_only=False) for path in (tmp_path, folder))
    assert ours.keys() == theirs.keys() and ours["state_dict"].keys() == theirs["state_dict"].keys()
    (of_ours,), (of_theirs,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert of_ours["param_groups"] == of_theirs["param_groups"]
    torch.testing.assert_close(of_ours["state"], of_theirs["state"], rtol=1e-8, atol=1e-11)
    Module().load_state_dict(ours["state_dict"])
    if schedule != "zb1p":
        return
    # One process's checkpoint goes on in the pipeline, by another schedule; and the pipeline's in one process.
    later = run_alone(tmp_path / "later", first_of(folder))
    other_schedule = {"schedule": "1f1b", "microbatches": 4}
    for found in worlds.values(worlds.run(2, together, tmp_path / "on", first_of(folder), other_schedule, timeout=200)):
        check(found, later)
    check(run_alone(tmp_path / "back", first_of(tmp_path)), later)


def test_frozen_parameters(tmp_path) -> None:
    (expected,) = worlds.values(worlds.run(1, alone, tmp_path / "a", None, Frozen, timeout=150))
    assert torch.equal(expected[1]["layers.3.0.weight"], Module().layers[3][0].weight)
    pipeline = {"schedule": "zb1p", "microbatches": 4}
    for found in worlds.values(worlds.run(2, together, tmp_path / "b", None, pipeline, Frozen, timeout=200)):
        check(found, expected)


def first_of(folder: Path) -> str:
    (path,) = folder.glob("epoch=0*.ckpt")
    return str(path)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class WithoutLoss(Module):
    def training_step(self, batch, batch_idx):
        self(batch[0])


class Full(L.Callback):
    """No disk for the second checkpoint."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and trainer.global_rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


class Killed(L.Callback):
    """While rank 0 writes the second checkpoint."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and trainer.global_rank == 0:
            LocalFileOpener.write = self.half

    @staticmethod
    def half(opener, data):
        opener.f.write(data[: len(data) // 2])
        opener.f.flush()
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 2 and trainer.global_rank == 1:
            raise LookupError("of the callback")


PLAIN = {"gradient_clip_val": None, "accumulate_grad_batches": 1}


def refusals(rank: int, folder: Path):
    as_torchrun(rank)
    found = []
    for module, pipeline in [
        (Manual(), {"microbatches": 4}),
        (WithoutLoss(), {"microbatches": 4}),
        (Module(), {}),
        (Module(), {"microbatches": 4, "cut": ["head", "layers"]}),
        (Module(), {"microbatches": 8, "schedule": dualpipe.schedule("1f1b", ranks=2, microbatches=4)}),
    ]:
        try:
            trainer_of(folder, pipeline, Recorded(), **PLAIN).fit(module, loader(True))
            found.append("nothing")
        except dualpipe.InputError as error:
            found.append(str(error))
    return found


TIMEOUT = 20.0


def fails(rank: int, folder: Path, callback: type, rows: list[int]):
    as_torchrun(rank)
    trainer = trainer_of(folder, {"microbatches": 4, "timeout": TIMEOUT}, callback(), **PLAIN)
    begin = time.monotonic()
    try:
        trainer.fit(Module(), loader(False, rows[rank]), loader(False))
        return "nothing"
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert time.monotonic() - begin < TIMEOUT
        return f"{type(error).__name__}: {error}"


def test_refusals(tmp_path) -> None:
    for found in worlds.values(worlds.run(2, refusals, tmp_path, timeout=100)):
        parts = ["automatic_optimization", "has to return the loss", "microbatches", "cut at 1", "and 8 are asked for"]
        for text, part in zip(found, parts, strict=True):
            assert part in text, found


@pytest.mark.parametrize(
    "callback, rows, said",
    [
        (Failing, [42, 42], ["rank 1 failed outside of the pipeline: LookupError", "LookupError: of the callback"]),
        (Recorded, [42, 24], ["do all ranks run the same code, and read the same data?"] * 2),
        (Full, [42, 42], ["File too large", "TransportError: rank 0 failed in saving"]),
        (Killed, [42, 42], [None, "Error: "]),
    ],
)
def test_faults(tmp_path, callback, rows, said) -> None:
    """All ranks hear of what happens to one, soon, and the last checkpoint is whole."""
    for found, part in zip(worlds.run(2, fails, tmp_path, callback, rows, timeout=100), said):
        assert found is worlds.Killed if part is None else part in found, found
    paths = list(tmp_path.glob("*.ckpt"))
    assert bool(paths) == (callback in (Full, Killed)), paths
    for path in paths:
        Module().load_state_dict(torch.load(path, weights_only=False)["state_dict"])
