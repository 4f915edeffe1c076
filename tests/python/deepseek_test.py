"""DeepSeek's API against what DeepSeek's code gave (tests/python/goldens: deepseek-ai/DualPipe at 3da1bbe, on CPU,
torch 2.11, gloo). The case is computed from integers:

    fill(shape, key, scale)[i] = (((i * 7919 + key * 104729) % 2003) / 2003 - 0.5) * scale

Stage s, of hidden size 8: linear2(gelu(linear1(x))), linear1 of 8 -> 32 by key 2 s + 1 and scale 1.2, linear2 of 32
-> 8 by key 2 s + 2 and scale 0.8, no bias. Inputs: [2 M, 3, 8] by key 1001 and scale 4, labels by key 1002; the
mean squared error. Ops: F0.3 is the forward of module 0, its micro-batch 3; (F&B) one
call of the hook.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe
from dualpipe.utils import WeightGradStore, run_backward

HIDDEN, SEQUENCE, ROWS = 8, 3, 2
goldens = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "goldens").glob("*.json"))
}


def fill(shape, key, scale, dtype):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((((i * 7919 + key * 104729) % 2003).double() / 2003 - 0.5) * scale).reshape(shape).to(dtype)


class WaitingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight):
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight)

    @staticmethod
    def backward(ctx, gradient):
        input, weight = ctx.saved_tensors
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)

        def add():
            weight.grad += gradient.flatten(0, -2).T @ input.flatten(0, -2)

        if WeightGradStore.enabled:
            WeightGradStore.put(add)
        else:
            add()
        return gradient @ weight, None


class MyLinear(nn.Linear):
    def forward(self, input):
        return WaitingLinear.apply(input, self.weight)


class PlainStage(nn.Module):
    layer = nn.Linear

    def __init__(self, stage, dtype):
        super().__init__()
        self.linear1 = self.layer(HIDDEN, 4 * HIDDEN, bias=False, dtype=dtype)
        self.linear2 = self.layer(4 * HIDDEN, HIDDEN, bias=False, dtype=dtype)
        with torch.no_grad():
            self.linear1.weight.copy_(fill((4 * HIDDEN, HIDDEN), 2 * stage + 1, 1.2, dtype))
            self.linear2.weight.copy_(fill((HIDDEN, 4 * HIDDEN), 2 * stage + 2, 0.8, dtype))

    def forward(self, x):
        return self.linear2(F.gelu(self.linear1(x)))


class DeferringStage(PlainStage):
    layer = MyLinear
    calls = 0

    @classmethod
    def overlapped_forward_backward(
        cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ):
        cls.calls += 1
        outputs0 = module0(*inputs0)
        outputs0 = [outputs0] if isinstance(outputs0, torch.Tensor) else outputs0
        loss0 = criterion0(*outputs0, *labels0) if criterion0 is not None else None
        if loss1 is not None:
            loss1.backward()
            loss1.detach_()
        else:
            run_backward(outputs1, output_grads1)
        return outputs0, loss0


def criterion(output, target):
    return F.mse_loss(output, target).clone()


def digest(tensor):
    tensor = tensor.detach()
    d = tensor.double().flatten()
    weights = torch.arange(1, d.numel() + 1, dtype=torch.float64)
    return {
        "shape": list(tensor.shape),
        "sum": d.sum().item(),
        "abs": d.abs().sum().item(),
        "norm": d.norm().item(),
        "weighted": (d * weights).sum().item() / d.numel(),
        "head": d[:4].tolist(),
        "sha256": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16],
    }


def whole_model(golden):
    """By plain autograd, micro-batch by micro-batch: what says whether this machine has the bits of the goldens'."""
    dtype = getattr(torch, golden["dtype"])
    stages = golden["ranks"] * (2 if golden["class"] == "DualPipeV" else 1)
    model = nn.Sequential(*(PlainStage(stage, dtype) for stage in range(stages)))
    chunks = golden["num_chunks"]
    x, labels = (fill((chunks * ROWS, SEQUENCE, HIDDEN), key, 4, dtype) for key in (1001, 1002))
    losses = []
    for input, target in zip(x.chunk(chunks), labels.chunk(chunks)):
        loss = criterion(model(input), target)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: digest(p.grad) for name, p in model.named_parameters()}


def op_of(text: str, stages: list[int]) -> str:
    """As the goldens write it."""
    stage, kind, micro_batch = re.fullmatch(r"(\d+)([FBIW])(\d+)", text).groups()
    return "W" if kind == "W" else f"{kind}{stages.index(int(stage))}.{micro_batch}"


def ops_of(prof, stages: list[int], has_hook: bool) -> str:
    texts = []
    # Not of function_events, whose names are demangled: 2F0 is F0 there.
    for event in sorted(prof.kineto_results.events(), key=lambda e: e.start_ns()):
        if re.fullmatch(r"\d+[FBIW]\d+", event.name()):
            texts.append(op_of(event.name(), stages))
        elif pair := re.fullmatch(r"\((\d+F\d+);(\d+B\d+)\)OVERLAP_F_B", event.name()):
            ops = [op_of(each, stages) for each in pair.groups()]
            texts.append(f"({'&'.join(ops)})" if has_hook else " ".join(ops))
    return " ".join(texts)


def rank_of_golden(rank, golden):
    """One rank, in the form of the golden's."""
    dtype = getattr(torch, golden["dtype"])
    ranks, chunks = golden["ranks"], golden["num_chunks"]
    has_hook = "overlapped" in golden["module"] and "no overlap" not in golden["module"]
    kind = DeferringStage if has_hook else PlainStage
    is_v = golden["class"] == "DualPipeV"
    numbers = [rank, (2 * ranks if is_v else ranks) - 1 - rank]
    pipe = getattr(dualpipe, golden["class"])([kind(number, dtype) for number in numbers])
    x, labels = (fill((chunks * ROWS, SEQUENCE, HIDDEN), key, 4, dtype) for key in (1001, 1002))
    given = (None, None)
    if is_v and rank == 0:
        given = (x, labels)
    elif not is_v and rank in (0, ranks - 1):
        given = (x.chunk(2)[rank > 0], labels.chunk(2)[rank == 0])
    dualpipe.set_p2p_tensor_shapes([(ROWS, SEQUENCE, HIDDEN)])
    dualpipe.set_p2p_tensor_dtype(dtype)
    arguments = dict(num_chunks=chunks, criterion=criterion, labels=[given[1]])

    found = {"rank": rank, "stages": numbers}
    with torch.autograd.profiler.profile() as prof:
        loss, outputs = pipe.step(given[0], return_outputs=True, **arguments)
    held = pipe.pipeline(chunks).stages
    found["ops"] = ops_of(prof, held, has_hook)
    found["loss"] = None if loss is None else loss.tolist()
    found["loss_is"] = None if loss is None else {"shape": list(loss.shape), "requires_grad": loss.requires_grad}
    found["train_outputs"] = (
        outputs
        if outputs is None
        else {"type": type(outputs).__name__, "requires_grad": outputs.requires_grad, "digest": digest(outputs)}
    )
    found["grads"] = {name: digest(p.grad) for name, p in pipe.named_parameters()}
    with torch.no_grad():
        with torch.autograd.profiler.profile() as prof:
            loss, outputs = pipe.step(given[0], return_outputs=True, **arguments)
        found["eval_ops"] = ops_of(prof, held, has_hook)
        found["eval_loss"] = None if loss is None else loss.tolist()
        found["eval_outputs"] = None if outputs is None else digest(outputs)
        loss, outputs = pipe.step(given[0], num_chunks=chunks, return_outputs=True)
        found["eval_without_criterion"] = [loss, None if outputs is None else "tensor"]
    if has_hook:
        assert DeferringStage.calls > 0
    return found


def with_reduction(rank, golden):
    """The gradients of the two copies, summed by the pipeline."""
    dtype = getattr(torch, golden["dtype"])
    ranks, chunks = golden["ranks"], golden["num_chunks"]
    pipe = dualpipe.DualPipe([PlainStage(n, dtype) for n in (rank, ranks - 1 - rank)], reduce_gradients=True)
    x, labels = (fill((chunks * ROWS, SEQUENCE, HIDDEN), key, 4, dtype) for key in (1001, 1002))
    end = rank in (0, ranks - 1)
    for _ in range(2):  # the second one adds to what is there
        pipe.step(
            x.chunk(2)[rank > 0] if end else None,
            num_chunks=chunks,
            criterion=criterion,
            labels=[labels.chunk(2)[rank == 0] if end else None],
        )
    return {name: (p.grad / 2).sum().item() for name, p in pipe.named_parameters()}


def misuse(rank):
    """Its assertions are errors that say what to do."""
    stages = [PlainStage(n, torch.float64) for n in (rank, 1 - rank)]
    x = torch.zeros(8, SEQUENCE, HIDDEN, dtype=torch.float64)
    texts = []

    def expect(part, call):
        with pytest.raises(dualpipe.InputError, match=part):
            call()

    expect("takes the two modules", lambda: dualpipe.DualPipe(stages[:1]))
    expect("one module is given for two", lambda: dualpipe.DualPipe([stages[0]] * 2).step(x, num_chunks=8))
    pipe = dualpipe.DualPipe(stages)
    expect("say how many", lambda: pipe.step(x))
    expect("micro-batches", lambda: pipe.step(x, num_chunks=5, criterion=criterion, labels=[x]))
    expect("got no criterion", lambda: pipe.step(x, num_chunks=8))
    with pytest.raises(RuntimeError, match="step"):
        pipe(x)
    assert [name for name, _ in pipe.named_parameters()][0] == "module.0.linear1.weight"
    return texts


def all_of(rank, names):
    found = {name: rank_of_golden(rank, goldens[name]) for name in names}
    of_mirror = next((name for name in names if "grads_with_mirror" in goldens[name]["by_rank"][0]), None)
    found["reduced"] = with_reduction(rank, goldens[of_mirror])
    if len(goldens[of_mirror]["by_rank"]) == 2:
        misuse(rank)
    return found


def compare(path, got, expected, is_bitwise):
    if isinstance(expected, dict):
        assert set(got) == set(expected), path
        for key in expected:
            if key != "sha256" or is_bitwise:
                compare(f"{path}.{key}", got[key], expected[key], is_bitwise)
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        assert got == (expected if is_bitwise else pytest.approx(expected, rel=1e-12)), path
    elif isinstance(expected, float):
        assert got == (expected if is_bitwise else pytest.approx(expected, rel=1e-12)), path
    else:
        assert got == expected, path


@pytest.mark.parametrize("ranks", [2, 4])
def test_goldens(ranks):
    names = [name for name, golden in goldens.items() if golden["ranks"] == ranks]
    assert names
    by_rank = worlds.values(worlds.run(ranks, all_of, names, timeout=240))
    for name in names:
        golden = goldens[name]
        losses, grads = worlds.values(worlds.run(1, lambda _, g: whole_model(g), golden))[0]
        is_bitwise = {"losses": losses, "grads": grads} == golden["whole_model"]
        for rank, expected in enumerate(golden["by_rank"]):
            expected = {key: each for key, each in expected.items() if key != "grads_with_mirror"}
            compare(f"{name}, rank {rank}", by_rank[rank][name], expected, is_bitwise)
    of_mirror = next(goldens[name] for name in names if "grads_with_mirror" in goldens[name]["by_rank"][0])
    for rank, each in enumerate(of_mirror["by_rank"]):
        for name, of_golden in each["grads_with_mirror"].items():
            assert by_rank[rank]["reduced"][name] == pytest.approx(of_golden["sum"], rel=1e-9)
