"""Models on the meta device, of which each rank reads or makes its own weights."""

from __future__ import annotations

import ctypes
import json
import resource
import warnings
from pathlib import Path

import families
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe

safetensors = pytest.importorskip("safetensors.torch")


class Model(nn.Module):
    """Tied weights, a bare parameter, buffers of both kinds."""

    def __init__(self, layers: int = 4, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(23, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 23, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.full((width,), 0.5))
        self.register_buffer("mask", torch.full((width,), 2.0), persistent=False)

    def reset_parameters(self) -> None:
        self.scale.fill_(1.0)
        self.shift.fill_(0.5)
        self.mask.fill_(2.0)

    def forward(self, tokens, labels):
        x = self.embedding(tokens) + self.shift
        for layer in self.layers:
            x = layer(x * self.mask)
        logits = self.head(x * self.scale)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def batch(rows: int = 8) -> dict:
    tokens = torch.randint(0, 23, (rows, 5), generator=torch.Generator().manual_seed(1))
    return {"tokens": tokens, "labels": tokens.roll(-1, 1)}


def on_meta(make):
    with torch.device("meta"):
        return make()


def save(folder: Path, model: nn.Module, files: int = 2) -> None:
    """As transformers does: an index, and tied weights under one of their names."""
    state = {name: t.contiguous() for name, t in model.state_dict().items() if name != "head.weight"}
    where = {name: f"model-{i % files}.safetensors" for i, name in enumerate(state)}
    for file in set(where.values()):
        safetensors.save_file({name: state[name] for name, each in where.items() if each == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def given_model() -> Model:
    torch.manual_seed(3)
    model = Model()
    with torch.no_grad():
        for tensor in [*model.parameters(), model.shift]:
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


# --- split by shapes


@pytest.mark.parametrize("name", ["llama tied", "gpt2", "gemma3_text", "bloom"])
def test_by_shapes_as_with_weights(name: str) -> None:
    pytest.importorskip("transformers")
    with_weights, example = families.causal(name)
    empty, _ = on_meta(lambda: families.causal(name))
    for count in (2, 4):
        real, made = (dualpipe.split(each, count, example) for each in (with_weights, empty))
        assert (made.bounds, made.holders, made.reads) == (real.bounds, real.holders, real.reads)
        assert made.describe() == real.describe()
    assert all(p.is_meta and type(p) is nn.Parameter for p in empty.parameters())


class Looks(Model):
    def forward(self, tokens, labels):
        return super().forward(tokens, labels) if self.scale.sum() > 0 else None


def test_what_cannot_be_run_by_shapes() -> None:
    model = on_meta(Looks)
    with pytest.raises(dualpipe.InputError, match="Looks is on the meta device, .* looks at values .* its weights"):
        dualpipe.split(model, 2, batch(2))
    assert model.scale.is_meta and type(model.scale) is nn.Parameter
    with pytest.raises(dualpipe.InputError, match=r"no weights here \(device meta\), so nothing can be measured"):
        dualpipe.split(on_meta(Model), 2, batch(2)).costs()


# --- read


def read(rank: int, folder: Path):
    ranks = dist.get_world_size()
    expected = given_model()
    loss, logits = expected(**batch())
    loss.backward()
    wanted = dict(expected.named_parameters())
    for schedule, count in [("1f1b", ranks), ("dualpipe", ranks), ("dualpipev", 2 * ranks)]:
        pipe = dualpipe.split(on_meta(Model), count, batch(2)).pipeline(schedule, 4, weights=folder)
        own = dict(pipe.named_parameters())
        assert schedule == "dualpipe" or any(p.is_meta for p in pipe.model.parameters())
        assert not any(p.is_meta for p in own.values())
        got, outputs = pipe.step(batch(), return_outputs=True)
        torch.testing.assert_close((got, outputs[0]), (loss.detach(), logits.detach()))
        for name, parameter in own.items():
            assert torch.equal(parameter, wanted[name]), name
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6)
        state = pipe.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    return problems(rank, folder)


def problems(rank: int, folder: Path) -> list[str]:
    """Of one rank, and what all ranks say."""
    found = []
    narrow = on_meta(lambda: Model(width=4))
    cases = [
        (on_meta(Model), folder / "none"),
        (on_meta(Model), folder if rank == 0 else folder / "model-0.safetensors.part"),
        (narrow, folder),
        (on_meta(Model), {"inner": folder}),
        (on_meta(Model), folder / "model-0.json"),
        (on_meta(lambda: nn.Sequential(Bare(), Bare())), None),
    ]
    for model, weights in cases:
        example = torch.ones(2, 4) if isinstance(model, nn.Sequential) else batch(2)
        try:
            dualpipe.split(model, 2, example).pipeline("1f1b", 4, weights=weights)
            found.append("nothing")
        except dualpipe.InputError as error:
            found.append(str(error))
    return found


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.factor


def test_weights_from_files(tmp_path: Path) -> None:
    save(tmp_path, given_model())
    half = (tmp_path / "model-0.safetensors").read_bytes()
    (tmp_path / "model-0.safetensors.part").write_bytes(half[: len(half) // 2])
    (tmp_path / "model-0.json").write_text("{}")
    for rank, found in enumerate(worlds.values(worlds.run(2, read, tmp_path))):
        expected = [
            "none is no safetensors file that can be read",
            "rank 1 has no weights: InputError:" if rank == 0 else "part is no safetensors file that can be read",
            "has shape",
            'has no tensor of Model, one of which is scale; where its names are those of a module in it, give weights=',
            'model-0.json is no index of safetensors files: it has no "weight_map"',
            f"{rank}.factor has no value: no file is given, and Bare does not make it in reset_parameters()",
        ]
        for text, part in zip(found, expected, strict=True):
            assert part in text, (text, part)


# --- made


def made(rank: int, folder: Path):
    """Without files, by the modules' own functions: the same on all ranks that hold them."""
    torch.manual_seed(7)
    states = []
    for schedule in ("1f1b", "dualpipe"):
        pipe = dualpipe.split(on_meta(Model), 2, batch(2)).pipeline(schedule, 4)
        parts = pipe.gathered({name: parameter.detach() for name, parameter in pipe.named_parameters()})
        both = parts[0].keys() & parts[1].keys()
        assert len(both) == (1 if schedule == "1f1b" else 10)
        assert all(torch.equal(*(part[name] for part in parts)) for name in both)
        states.append(pipe.state_dict())
        assert torch.equal(pipe.model.mask, torch.full((8,), 2.0))
        pipe.step(batch())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items() if "layers" in name)
    assert states[0]["layers.1.0.weight"].std() > 0.1 and states[0]["embedding.weight"].std() > 0.5
    # Some are in the files: a model with a new head, say.
    pipe = dualpipe.split(on_meta(Model), 2, batch(2)).pipeline("1f1b", 4, weights=folder / "model-0.safetensors")
    known, expected = pipe.state_dict(), given_model().state_dict()
    assert any(torch.equal(known[name], tensor) for name, tensor in expected.items() if "layers" in name)
    assert not all(torch.equal(known[name], tensor) for name, tensor in expected.items() if "layers" in name)
    return transformers_model(rank)


def transformers_model(rank: int):
    pytest.importorskip("transformers")
    warnings.simplefilter("ignore")
    model, example = families.causal("llama")
    empty, _ = on_meta(lambda: families.causal("llama"))
    pipe = dualpipe.split(empty, 2, example).pipeline("1f1b", 2)
    assert torch.equal(empty.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    loss, _ = pipe.step(example)
    return loss.item(), model(**example).loss.item(), {name: t.std().item() for name, t in pipe.state_dict().items()}


def test_weights_that_are_made(tmp_path: Path) -> None:
    save(tmp_path, given_model())
    for loss, other, deviations in worlds.values(worlds.run(2, made, tmp_path)):
        assert loss == pytest.approx(other, rel=0.05), "of random weights, log(97)"
        assert all(d == pytest.approx(0.02, rel=0.2) for name, d in deviations.items() if "proj" in name), deviations
        assert deviations["model.norm.weight"] == 0.0


# --- memory

LAYERS, WIDTH = 32, 1024  # 134 MB in all


class Even(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def peak(run, folder: Path) -> int:
    """How many bytes of memory `run` has needed at the most, by a large model after a small one, for which all that is
    needed has been imported."""
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: what is freed is given back, and not kept by glibc
    run(folder / "small.safetensors", 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(folder / "large.safetensors", WIDTH)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def steps(step, parameters) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
    for _ in range(2):
        optimizer.zero_grad()
        step()
        optimizer.step()


def memory(rank: int, folder: Path) -> int:
    def whole(file: Path, width: int) -> None:
        model = Even(width)
        model.load_state_dict(safetensors.load_file(file))
        steps(lambda: model(torch.ones(8, width)).backward(), model.parameters())

    def part(file: Path, width: int) -> None:
        stages = dualpipe.split(on_meta(lambda: Even(width)), dist.get_world_size(), (torch.ones(2, width),))
        pipe = stages.pipeline("1f1b", 4, weights=file)
        steps(lambda: pipe.step((torch.ones(8, width),)), pipe.parameters())

    return peak(whole if dist.get_world_size() == 1 else part, folder)


def test_memory_of_a_rank(tmp_path: Path) -> None:
    """With its gradients and optimizer state a rank of four needs a fourth, and a little."""
    for name, width in [("small", 8), ("large", WIDTH)]:
        safetensors.save_file(Even(width).state_dict(), tmp_path / f"{name}.safetensors")
    (whole,) = worlds.values(worlds.run(1, memory, tmp_path))
    ranks = worlds.values(worlds.run(4, memory, tmp_path))
    parameters = 4 * LAYERS * WIDTH * WIDTH
    assert whole > 4 * parameters, "weights, gradients, and two moments"
    shares = [each / whole for each in ranks]
    print(f"{whole / 1e6:.0f} MB, of which a rank has {', '.join(f'{each:.3f}' for each in shares)}")
    assert max(shares) <= 0.3 and min(shares) > 0.2, (whole, ranks)
