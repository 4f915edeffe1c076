"""Hugging Face's Trainer over a pipeline, against the same Trainer in one process."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import worlds

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import dualpipe  # noqa: E402

ROWS, LENGTH = 36, 12


def dataset(rows: int = ROWS) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for row in range(rows):
        tokens = torch.randint(3, 97, (LENGTH,), generator=generator).tolist()
        labels = [-100 if (row * 7 + i) % 5 == 0 else token for i, token in enumerate(tokens)]
        made.append({"input_ids": tokens, "attention_mask": [1] * LENGTH, "labels": labels})
    return made


def model(kind: str = "gpt2") -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
        )
        return transformers.LlamaForCausalLM(config).double()
    size = dict(vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = transformers.GPT2Config(**size, **none, pad_token_id=0)
    made = transformers.GPT2LMHeadModel(config).double()
    if kind == "frozen":  # so much that the first of two stages has nothing to train
        config.tie_word_embeddings = False
        made = transformers.GPT2LMHeadModel(config).double()
        for part in (made.transformer.wte, made.transformer.wpe, *made.transformer.h[:2]):
            part.requires_grad_(False)
    if kind == "lora":
        peft = pytest.importorskip("peft")
        options = dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
        made = peft.get_peft_model(made, peft.LoraConfig(task_type="CAUSAL_LM", **options)).double()
    return made


class Recorded(transformers.TrainerCallback):
    def __init__(self):
        self.rows: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = ("loss", "grad_norm", "eval_loss", "learning_rate", "eval_accuracy", "epoch")
        self.rows.append({key: float(logs[key]) for key in kept if key in logs})


def arguments(folder: Path, **changes) -> transformers.TrainingArguments:
    transformers.utils.logging.set_verbosity_error()
    options = dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        weight_decay=0.1,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
        seed=3,
        disable_tqdm=True,
    )
    return transformers.TrainingArguments(**{**options, **changes})


def accuracy(predictions) -> dict:
    right = predictions.predictions[:, :-1].argmax(-1) == predictions.label_ids[:, 1:]
    return {"accuracy": float(right.mean())}


def environment(rank: int, ranks: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # not used: the group is there


def make(folder: Path, pipeline: dict | None, kind: str = "gpt2", **changes):
    recorded = Recorded()
    with torch.device("meta" if pipeline is not None and "weights" in pipeline else "cpu"):
        made = model(kind)
    options = dict(
        model=made,
        args=arguments(folder, **changes),
        train_dataset=dataset(),
        eval_dataset=dataset(20),
        callbacks=[recorded],
        compute_metrics=accuracy,
    )
    if pipeline is None:
        return transformers.Trainer(**options), recorded
    return dualpipe.transformers.PipelineTrainer(**options, **pipeline), recorded


def rows_and_weights(trainer, recorded) -> tuple[list[dict], dict]:
    state = trainer.pipeline.state_dict() if hasattr(trainer, "pipeline") else trainer.model.state_dict()
    return recorded.rows, {name: tensor.clone() for name, tensor in state.items()}


def alone(_, folder: Path, kind: str, changes: dict, resume: str | None):
    dist.destroy_process_group()
    trainer, recorded = make(folder, None, kind, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return rows_and_weights(trainer, recorded)


def together(rank: int, folder: Path, kind: str, changes: dict, resume: str | None, pipeline: dict):
    environment(rank, dist.get_world_size())
    trainer, recorded = make(folder, pipeline, kind, **changes)
    trainer.train(resume_from_checkpoint=resume)
    own = sum(p.numel() for p in trainer.pipeline.parameters() if p.requires_grad)
    held = sum(t.numel() for s in trainer.optimizer.state.values() for t in s.values() if t.dim())
    assert held == 2 * own, "the optimizer has the state of what this rank holds, and no other"
    predicted = trainer.predict([{k: v for k, v in row.items() if k != "labels"} for row in dataset(5)])
    assert predicted.predictions.shape == (5, LENGTH, 97), predicted.predictions.shape
    return rows_and_weights(trainer, recorded)


def check(got, expected) -> None:
    rows, weights = got
    expected_rows, expected_weights = expected
    for row, other in zip(rows, expected_rows):
        assert row.keys() == other.keys()
        for key in row:
            # The Trainer sums losses in float32.
            assert row[key] == pytest.approx(other[key], rel=1e-6 if "loss" in key else 1e-9), (key, row, other)
    assert len(rows) == len(expected_rows) and len(rows) > 2
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=1e-7, atol=1e-9)


def run_alone(folder: Path, kind: str = "gpt2", changes: dict | None = None, resume: str | None = None):
    return worlds.values(worlds.run(1, alone, folder, kind, changes or {}, resume, timeout=200))[0]


def run_together(ranks, folder, pipeline, kind="gpt2", changes=None, resume=None):
    return worlds.values(worlds.run(ranks, together, folder, kind, changes or {}, resume, pipeline, timeout=250))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_alone(folder)


@pytest.mark.parametrize("ranks, schedule", [(2, "1f1b"), (2, "dualpipev"), (4, "zb1p")])
def test_training(tmp_path, expected, ranks, schedule) -> None:
    """Losses, norms, metrics and weights of every step; checkpoints are the Trainer's own, and go on in both."""
    folder, alone_found = expected
    files = {} if ranks == 2 else {"weights": tmp_path / "weights"}  # of a model that no rank has whole
    model().save_pretrained(tmp_path / "weights")
    for found in run_together(ranks, tmp_path, {"schedule": schedule, "microbatches": 8, **files}):
        check(found, alone_found)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    other = transformers.GPT2LMHeadModel.from_pretrained(folder / "checkpoint-4").state_dict()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-7, atol=1e-9)
    names = {path.name for path in (folder / "checkpoint-4").iterdir()}
    assert names - {"rng_state.pth"} <= {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    if schedule == "1f1b":
        return
    # From the middle of an epoch: one process's checkpoint by the pipeline, and the pipeline's by one process.
    other_schedule = {"schedule": "1f1b", "microbatches": 4, **files}
    for found in run_together(ranks, tmp_path / "on", other_schedule, resume=str(folder / "checkpoint-2")):
        check_later(found, alone_found)
    check_later(run_alone(tmp_path / "back", resume=str(tmp_path / "checkpoint-2")), alone_found)


def check_later(found, expected) -> None:
    rows, weights = found
    check((rows, weights), (expected[0][-len(rows) :], expected[1]))


def test_means_and_smoothing(tmp_path) -> None:
    """Losses that are means; and a loss that the Trainer computes."""
    changes = {"label_smoothing_factor": 0.1, "num_train_epochs": 1, "max_grad_norm": 0.0}
    found = run_alone(tmp_path / "a", "llama", changes)
    for each in run_together(2, tmp_path / "b", {"schedule": "1f1b", "microbatches": 4}, "llama", changes):
        check(each, found)


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_frozen_parameters(tmp_path, kind) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    changes = {"num_train_epochs": 1}
    found = run_alone(tmp_path / "alone", kind, changes)
    for each in run_together(2, tmp_path / "b", {"schedule": "zb1p", "microbatches": 4}, kind, changes):
        check(each, found)
    before = dict(model(kind).named_parameters())
    assert any(not parameter.requires_grad for parameter in before.values())
    for name, parameter in before.items():
        assert torch.equal(parameter, found[1][name]) != parameter.requires_grad, name
    if kind == "lora":
        saved = [[p.name for p in (tmp_path / each / "checkpoint-2").iterdir()] for each in ("alone", "b")]
        assert "adapter_model.safetensors" in saved[0] and set(saved[0]) - {"rng_state.pth"} <= set(saved[1])
    # Goes on, from what has the adapter alone.
    resume = str(tmp_path / "alone" / "checkpoint-2")
    for each in run_together(2, tmp_path / "c", {"schedule": "1f1b", "microbatches": 4}, kind, changes, resume):
        check_later(each, found)


def refusals(rank, folder):
    environment(rank, dist.get_world_size())
    found = []
    for changes, pipeline in [
        ({"fp16_full_eval": True}, {"microbatches": 4}),
        ({"optim": "adalomo"}, {"microbatches": 4}),
        ({}, {"microbatches": None}),
        ({}, {"microbatches": 4, "cut": ["lm_head", "lm_head"]}),
        ({}, {"microbatches": 4, "schedule": "1f2b"}),
        ({}, {"microbatches": 8, "schedule": dualpipe.schedule("1f1b", ranks=2, microbatches=4)}),
    ]:
        try:
            make(folder, pipeline, **changes)[0].train()
            found.append("nothing")
        except dualpipe.InputError as error:
            found.append(str(error))
    return found


def test_refusals(tmp_path) -> None:
    for found in worlds.values(worlds.run(2, refusals, tmp_path, timeout=100)):
        parts = ["fp16_full_eval", "optim=", "microbatches", "2 stages are cut at 1", "1f2b", "and 8 are asked for"]
        for text, part in zip(found, parts, strict=True):
            assert part in text, found


class Failing(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and int(os.environ["RANK"]) == 1:
            raise LookupError("of the callback")


class DiskFull(transformers.TrainerCallback):
    """From the second checkpoint on, for rank 0, which writes: no file may be longer than this."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and int(os.environ["RANK"]) == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


class Killed(transformers.TrainerCallback):
    """While rank 0 writes the optimizer's state of the second checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and int(os.environ["RANK"]) == 0:
            torch.save = self.half

    @staticmethod
    def half(state, path, *args, save=torch.save, **options):
        if isinstance(path, io.BytesIO):  # a message
            return save(state, path, *args, **options)
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


TIMEOUT = 20.0


def fails(rank, folder):
    """One after the other, and what is said of it within which time."""
    environment(rank, dist.get_world_size())
    found = []
    for callback, rows in [(Failing, 32), (None, 32 - 16 * rank), (DiskFull, 32), (Killed, 32)]:
        name = callback.__name__ if callback else "Short"
        quick = dict(gradient_accumulation_steps=1, save_steps=1, eval_strategy="no", num_train_epochs=1)
        trainer, _ = make(folder / name, {"microbatches": 4, "timeout": TIMEOUT}, **quick)
        trainer.train_dataset = dataset(rows)
        trainer.add_callback(callback() if callback else Recorded())
        begin = time.monotonic()
        try:
            trainer.train()
            found.append(("nothing", "", 0.0))
        except Exception as error:
            found.append((type(error).__name__, str(error), time.monotonic() - begin))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / f"found{rank}.json").write_text(json.dumps(found))  # of one who is killed, too
    return found


def check_last(folder: Path, step: int) -> None:
    """The last checkpoint is that of `step`, and whole."""
    last = transformers.trainer_utils.get_last_checkpoint(folder)
    assert last == str(folder / f"checkpoint-{step}")
    assert json.loads((folder / last / "trainer_state.json").read_text())["global_step"] == step
    transformers.GPT2LMHeadModel.from_pretrained(last)
    names = {path.name for path in Path(last).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "scheduler.pt", "model.safetensors"} <= names
    assert torch.load(Path(last) / "optimizer.pt")["state"]


def test_faults(tmp_path) -> None:
    """All ranks hear of what happens to one, soon, and the last checkpoint is whole."""
    killed, second = worlds.run(2, fails, tmp_path, timeout=200)
    assert killed is worlds.Killed, killed
    (failing, short, full, after) = second
    of_first = json.loads((tmp_path / "found0.json").read_text())
    assert of_first[0][0] == "TransportError" and "rank 1 failed outside" in of_first[0][1], of_first
    assert of_first[1][0] == "InputError" and "the data of step 2" in of_first[1][1], of_first
    assert "File too large" in of_first[2][1], of_first
    assert failing[:2] == ("LookupError", "of the callback")
    assert short[0] == "InputError" and "process 1 at the end of step 2; do all ranks" in short[1], short
    assert full[0] == "TransportError" and "rank 0 failed in saving" in full[1] and "checkpoint-2" in full[1], full
    assert after[0] in ("TransportError", "RuntimeError"), after
    assert all(seconds < TIMEOUT for _, _, seconds in second[:3]), second
    for name, step in [("Failing", 1), ("Short", 2), ("DiskFull", 1), ("Killed", 1)]:
        check_last(tmp_path / name, step)
