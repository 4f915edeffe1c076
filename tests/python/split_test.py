"""Models that are split: by themselves against the whole, and as pipelines of two and four processes."""

from __future__ import annotations

import copy
import time

import families
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe



class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x, mask):
        return (x + self.down(F.gelu(self.up(self.norm(x)))) * mask[..., None],)


class Model(nn.Module):
    """What models have: a head with the embedding's weight, bare parameters before and behind the layers, an input
    that all layers read and one that none does, a loss of its own."""

    def __init__(self, layers: int = 4):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(23, 8)
        self.position = nn.Parameter(torch.randn(8))
        self.layers = nn.ModuleList(Block(8) for _ in range(layers))
        self.scale = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 23, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(()))
        self.double()

    def forward(self, tokens, mask, unused, labels):
        x = self.embedding(tokens) + self.position
        for layer in self.layers:
            x = layer(x, mask)[0]
        logits = self.head(x * self.scale)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def batch(rows: int, length: int = 5) -> dict:
    generator = torch.Generator().manual_seed(rows + 100 * length)
    tokens = torch.randint(0, 23, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    return {"tokens": tokens, "mask": mask, "unused": torch.ones(rows, 3, 4), "labels": tokens.roll(-1, 1)}


# --- in one process


def test_a_model_in_stages() -> None:
    model = Model()
    state = copy.deepcopy(model.state_dict())
    stages = dualpipe.split(model, 3, batch(2))
    assert stages.units == ["embedding", *(f"layers.{i}" for i in range(4)), "head"]
    assert stages.cuts == ["layers.2", "layers.3"] and stages.shared == {"embedding.weight": [0, 2]}
    names = [[name for name, _ in stage.named_parameters()] for stage in stages]
    assert "position" in names[0] and "scale" in names[2] and "position" not in names[1] + names[2]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    families.check_names(model, stages)
    families.compare(model, batch(2), 3)
    text = stages.describe()
    assert "Model in 3 stages" in text and "embedding ... layers.1" in text, text
    assert "embedding.weight is on stages 0, 2" in text and max(map(len, text.splitlines())) <= 80, text
    # Other rows, and another length; what no stage behind the first reads crosses as a shape.
    for rows, length in [(2, 5), (3, 5), (4, 7), (1, 2)]:
        given = batch(rows, length)
        values = stages.inputs(given)
        for stage in stages:
            values = stage(*values)
            assert stage.is_last or values[3].shape == (0, rows, 3, 4)
        expected = model(**given)
        assert torch.equal(values[0], expected["loss"]) and torch.equal(values[1], expected["logits"])


def test_frozen_parameters() -> None:
    """As adapters leave them: the graph is found all the same, and they stay frozen."""
    model = Model()
    model.requires_grad_(False)
    model.layers[3].up.requires_grad_(True)
    stages = dualpipe.split(model, 2, batch(2))
    assert sum(p.requires_grad for p in model.parameters()) == 2
    assert "position" in dict(stages[0].named_parameters()) and "scale" in dict(stages[1].named_parameters())


def test_cuts_and_balance() -> None:
    model = Model()
    assert dualpipe.split(model, 3, batch(2), cut=["layers.0", "head"]).cuts == ["layers.0", "head"]
    assert dualpipe.split(model, 2, batch(2), balance=[0, 9, 1, 1, 1, 0]).cuts == ["layers.1"]
    assert dualpipe.split(model, 2, batch(2), balance="parameters").cuts == ["layers.2"]


class Slow(nn.Linear):
    """Takes time, and no operations more than the others."""

    seconds = 0.02

    def forward(self, x):
        time.sleep(self.seconds)
        return super().forward(x)


def cuts_by_time(rank: int) -> list[str]:
    """On the second process the last layer is the slow one."""
    layers = [nn.Linear(4, 4) for _ in range(4)]
    layers[3 * rank] = Slow(4, 4)
    return dualpipe.split(nn.Sequential(*layers), 2, (torch.ones(2, 4),), balance="time").cuts


def test_balance_by_time() -> None:
    assert dualpipe.split(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), 2, (torch.ones(2, 4),)).cuts == ["2"]
    assert worlds.values(worlds.run(2, cuts_by_time)) == [["1"], ["1"]]
    with torch.device("meta"), pytest.raises(dualpipe.InputError, match='balance="time": the model has no weights'):
        dualpipe.split(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 2, (torch.ones(2, 4),), balance="time")


class Around(nn.Module):
    """b's input is used behind c, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        y = self.a(x)
        return self.d(self.c(self.b(y)) + y)


class Hidden(Around):
    """As before, by a way that the graph does not show."""

    def forward(self, x):
        y = self.a(x)
        return self.d(self.c(self.b(y)) + y.detach())


@pytest.mark.parametrize(
    "model, stages, example, options, text",
    [
        (Around, 3, (torch.ones(2, 4),), {}, "3 places between its 4 units 1 can be cut, before b. What a gives is"),
        (Around, 2, (torch.ones(2, 4),), {"cut": ["c"]}, "what a gives is used .*; the nearest place is before b"),
        (Around, 2, (torch.ones(2, 4),), {"cut": ["e"]}, "cut at e: one can cut before b$"),
        (Around, 2, (torch.ones(2, 4),), {"cut": ["b", "d"]}, "2 stages are cut at 1 modules, and cut has 2"),
        (Model, 3, batch(2), {"cut": ["layers.2", "layers.1"]}, "the forward calls it before layers.2"),
        (Hidden, 2, (torch.ones(2, 4),), {"cut": ["c"]}, "does not compute what the whole model does"),
        (Around, 2, (torch.ones(2, 4),), {"balance": [1, 2]}, "a cost of each of the 4 units"),
        (Around, 2, (torch.ones(2, 4),), {"balance": "luck"}, '"flops", "parameters", "time", or a list'),
        (Around, 0, (torch.ones(2, 4),), {}, "there has to be one at least"),
        (Model, 2, {**batch(2), "unused": torch.ones(3)}, {}, r"input unused of the example has shape \[3\]"),
        (Around, 2, (), {}, "the example has to be what the model is called with"),
    ],
)
def test_refusals(model, stages, example, options, text) -> None:
    with pytest.raises(dualpipe.InputError, match=text):
        dualpipe.split(model(), stages, example, **options)


def test_refusals_of_batches() -> None:
    stages = dualpipe.split(Model(), 2, batch(2))
    with pytest.raises(dualpipe.InputError, match="the batch has tokens, mask, .* tokens, mask, unused, labels"):
        stages.inputs({k: v for k, v in batch(2).items() if k != "labels"})
    with pytest.raises(dualpipe.InputError, match="takes tokens, mask, unused, labels, 4 tensors, and got 1"):
        stages[0](torch.ones(2, 5))
    with pytest.raises(dualpipe.InputError, match="takes a model of 1 stages, and this one was split into 2"):
        stages.pipeline("1f1b", 4)


def test_schedules(tmp_path, monkeypatch) -> None:
    """A name of the catalog is meant before a file of that name; a file has ranks and micro-batches of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1f1b").write_text("no schedule")
    assert dualpipe.ModelPipeline.of(Model(), "1f1b", 4, batch(2)).schedule.microbatches == 4
    (tmp_path / "file.json").write_text(dualpipe.schedule("gpipe", ranks=1, microbatches=4).to_json())
    (tmp_path / "two.json").write_text(dualpipe.schedule("gpipe", ranks=2, microbatches=4).to_json())
    for number in (None, 4):
        assert dualpipe.ModelPipeline.of(Model(), "file.json", number, batch(2)).schedule.name == "gpipe"
    stages = dualpipe.split(Model(), 1, batch(2))
    for make in (stages.pipeline, lambda *a: dualpipe.ModelPipeline.of(Model(), *a, example=batch(2))):
        with pytest.raises(dualpipe.InputError, match="gpipe is a schedule of 4 micro-batches, and 8 are asked for"):
            make("file.json", 8)
        with pytest.raises(dualpipe.InputError, match="one of 2 ranks, and the process group has 1"):
            make("two.json", 4)
        with pytest.raises(dualpipe.InputError, match="how many microbatches schedule 1f1b is to have is not said"):
            make("1f1b", None)


def test_costs() -> None:
    costs = dualpipe.split(Model(), 2, batch(16)).costs()
    timeline = dualpipe.simulate("zb1p", ranks=2, microbatches=4, costs=costs)
    assert timeline.makespan > 10_000 and min(timeline.peak_memory) > 16 * 5 * 8 * 8


# --- models of transformers and torchvision; python/families.py has the whole list

SOME = ["llama tied", "gpt2", "mixtral", "deepseek_v3", "gemma3_text", "qwen3_moe", "mamba2", "gpt_oss", "bloom", "opt"]
SOME_IMAGES = ["resnet18", "vit_b_32", "mobilenet_v3_small"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("count", [2, 4])
def test_causal_models(name: str, count: int) -> None:
    pytest.importorskip("transformers")
    assert families.verdict(name, count) == "bitwise"


@pytest.mark.parametrize("name", SOME_IMAGES)
def test_models_of_images(name: str) -> None:
    pytest.importorskip("torchvision")
    assert families.verdict(name, 4) == "bitwise"


def test_an_auxiliary_loss_is_refused() -> None:
    pytest.importorskip("transformers")
    text = families.verdict("mixtral with its auxiliary loss", 4)
    assert text.startswith("refused: ") and "before model.layers.0" in text and "is used behind" in text, text


# --- as pipelines


def reference(given: dict, pieces: int, layers: int) -> tuple[torch.Tensor, dict, list]:
    model = Model(layers)
    rows = len(given["tokens"])
    losses, logits = [], []
    for part in zip(*(t.tensor_split(pieces) for t in given.values())):
        made = model(*part)
        loss = made["loss"] * (len(part[0]) / rows)
        loss.backward()
        losses.append(loss.detach())
        logits.append(made["logits"].detach())
    return sum(losses), dict(model.named_parameters()), [torch.cat(logits)]


def pipelines(rank: int) -> None:
    ranks = dist.get_world_size()
    for schedule, stages_per_rank in [("1f1b", 1), ("zb1p", 1), ("dualpipe", 1), ("dualpipev", 2), ("interleaved", 2)]:
        layers = 2 * ranks
        model = Model(layers)
        count = ranks * stages_per_rank
        stages = dualpipe.split(model, count, batch(2), cut=(["layers.1"] if count == 2 else None))
        pipe = stages.pipeline(schedule, 2 * ranks)
        pipe.release_others()
        held = sum(p.numel() for p in pipe.parameters()) / sum(p.numel() for p in model.parameters())
        assert held < (0.85 if ranks == 2 else 0.6) or schedule == "dualpipe", (schedule, held)
        for rows in (4 * ranks, 4 * ranks + 1, ranks):
            given = batch(rows)
            pieces = min(rows, 2 * ranks)
            loss, parameters, logits = reference(given, pieces, layers)
            for parameter in pipe.parameters():
                parameter.grad = None
            got, outputs = pipe.step(given, return_outputs=True)
            torch.testing.assert_close(got, loss.double(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(outputs, logits, rtol=1e-12, atol=1e-12)
            for name, parameter in pipe.named_parameters():
                torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-10, atol=1e-12)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
            torch.testing.assert_close(pipe.grad_norm(), norm, rtol=1e-12, atol=0.0)
        # Accumulated: twice the same.
        before = {name: p.grad.clone() for name, p in pipe.named_parameters()}
        pipe.step(given)
        for name, parameter in pipe.named_parameters():
            torch.testing.assert_close(parameter.grad, 2 * before[name], rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            got, _ = pipe.step(given)
        torch.testing.assert_close(got, loss.double(), rtol=1e-12, atol=1e-12)
        optimizer_is_the_whole_ones(pipe, parameters, layers)


def optimizer_is_the_whole_ones(pipe: dualpipe.ModelPipeline, parameters: dict, layers: int) -> None:
    model = pipe.model
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=0.1)
    names = pipe.keep_own(optimizer)
    whole = torch.optim.AdamW([{"params": list(parameters.values()), "weight_decay": 0.1}], lr=0.1)
    for parameter in pipe.parameters():
        parameter.grad.mul_(0.5)
    pipe.clip_grad_norm_(0.5)
    torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
    optimizer.step()
    whole.step()
    assert len(optimizer.state) == len(list(pipe.parameters()))
    state = pipe.optimizer_state_dict(optimizer, names)
    expected = whole.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(state["state"], expected["state"], rtol=1e-9, atol=1e-12)
    for name, tensor in pipe.state_dict().items():
        if name in parameters:
            torch.testing.assert_close(tensor, parameters[name].detach(), rtol=1e-9, atol=1e-12)
    assert set(pipe.state_dict()) == set(model.state_dict())
    pipe.load_state_dict(Model(layers).state_dict())
    pipe.load_optimizer_state_dict(optimizer, names, expected)
    again = pipe.optimizer_state_dict(optimizer, names)
    torch.testing.assert_close(again["state"], expected["state"], rtol=0, atol=0)


def adapters(rank: int) -> None:
    """A partition that is given for both directions stands for two."""
    for kind, count in [(dualpipe.DualPipe, 2), (dualpipe.DualPipeV, 4)]:
        torch.manual_seed(4)
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).double()
        partitions = dualpipe.adapters.get_model_adapter(model).partition(num_partitions=count)
        assert len(partitions) == count and "Sequential in" in repr(partitions)
        pipe = kind([partitions[rank], partitions[rank]], reduce_gradients=True)
        x, y = torch.randn(2, 16, 4, dtype=torch.float64)
        both = kind is dualpipe.DualPipe
        own_x, own_y = (x.chunk(2)[rank], y.chunk(2)[1 - rank]) if both else (x, y)
        loss, _ = pipe.step(own_x, num_chunks=8, criterion=F.mse_loss, labels=[own_y])
        got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        expected = [F.mse_loss(model(a), b) for a, b in zip(x.chunk(8), y.chunk(8))]
        sum(expected).backward()
        if loss is not None:
            torch.testing.assert_close(loss, torch.stack(expected).detach().chunk(2)[1 - rank] if both else loss)
        assert len(got) == (8 if both else 4)
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, rtol=1e-12, atol=1e-14)
    partitions = dualpipe.adapters.get_model_adapter(model, torch.ones(2, 4).double()).partition(3)
    with pytest.raises(dualpipe.InputError, match="the model has 3 partitions, and the pipeline takes 2"):
        dualpipe.DualPipe([partitions[rank], partitions[rank]])
    with pytest.raises(dualpipe.InputError, match="what Model is called with is not known"):
        dualpipe.adapters.get_model_adapter(Model()).partition(2)


def test_adapters() -> None:
    worlds.values(worlds.run(2, adapters))


@pytest.mark.parametrize("ranks", [2, 4])
def test_pipelines(ranks: int) -> None:
    worlds.values(worlds.run(ranks, pipelines, timeout=200))
