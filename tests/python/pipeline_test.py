"""Pipelines against the whole model in one process: every schedule of the catalog, and the kinds of code that users
have in their stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn
from torch.utils.checkpoint import checkpoint

import dualpipe

HIDDEN, ROWS = 6, 2
DOUBLE = torch.float64


class Block(nn.Module):
    def __init__(self, number, hidden=HIDDEN):
        super().__init__()
        torch.manual_seed(100 + number)
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden, bias=False)
        self.double()

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def data(rows):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows, 3, HIDDEN, dtype=DOUBLE, generator=generator) for _ in range(2)]


def loss_of(output, target):
    return F.mse_loss(output, target)


def whole(stages, x, y, micro_batches, order=None):
    """Losses, and gradients by stage and name, of the stages one after the other. `order`: in which the gradients of
    the micro-batches are summed, in groups whose sums are then added."""
    losses, gradients = [], []
    for input, target in zip(x.tensor_split(micro_batches), y.tensor_split(micro_batches)):
        for stage in stages:
            stage.zero_grad()
            input = stage(input)
        loss = loss_of(input, target)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([{n: p.grad.clone() for n, p in stage.named_parameters()} for stage in stages])
    sums = None
    for group in order or [range(micro_batches)]:
        of_group = gradients[group[0]]
        for each in group[1:]:
            of_group = added(of_group, gradients[each])
        sums = of_group if sums is None else added(sums, of_group)
    return torch.stack(losses), sums


def added(a, b):
    return [{name: each[name] + other[name] for name in each} for each, other in zip(a, b)]


def check_equal(got, expected, what):
    assert set(got) == set(expected), what
    for name, gradient in expected.items():
        assert got[name] is not None, f"{what}: {name} has no gradient"
        assert torch.equal(got[name], gradient), f"{what}: {name} differs by {(got[name] - gradient).abs().max()}"


# --- every schedule

ONE_STAGE = ["gpipe", "1f1b", "eager-1f1b", "zb1p", "zb-h2"]  # per rank; the others have two
TWO_CHAINS = ["dualpipe", "chimera", "chimera-shifted"]
FROM_COSTS = ["zb-auto", "zbv-auto"]


def run_schedule(rank, name, micro_batches, rows):
    ranks = dist.get_world_size()
    count = 1 if name in ONE_STAGE else 2
    two = name in TWO_CHAINS
    depth = ranks if two else ranks * count
    pipe = dualpipe.Pipeline([Block(0) for _ in range(count)], name, micro_batches)
    layers = [number % depth for number in pipe.stages]
    blocks = [Block(layer) for layer in layers]
    pipe = dualpipe.Pipeline(blocks, name, micro_batches)
    x, y = data(rows)
    halves = 2 if two else 1
    own_x = x.chunk(2)[rank > 0] if two else x
    own_y = y.chunk(2)[rank == 0] if two else y
    loss, outputs = pipe.step(own_x, criterion=loss_of, labels=own_y, return_outputs=True)
    with torch.no_grad():
        evaluated, _ = pipe.step(own_x, criterion=loss_of, labels=own_y)
    order = [range(micro_batches)]
    if two:
        order = [range(micro_batches // 2), range(micro_batches // 2, micro_batches)]
    elif name == "looped-bfs":  # the last one's backward is first
        order = [range(micro_batches)[::-1]]
    expected_losses, gradients = whole([Block(n) for n in range(depth)], x, y, micro_batches, order)
    assert (loss is None) == (outputs is None) == (evaluated is None) == (not pipe.ends_chain)
    if loss is not None:
        own = expected_losses.chunk(halves)[0 if not two or rank > 0 else 1]
        assert torch.equal(loss, own) and torch.equal(evaluated, own), name
        assert not outputs.requires_grad and outputs.shape == own_y.shape
    for layer, block in zip(layers, blocks):
        check_equal({n: p.grad for n, p in block.named_parameters()}, gradients[layer], f"{name}, stage {layer}")
    return str(pipe.weight_gradients())


def all_schedules(rank):
    ranks = dist.get_world_size()
    texts = {}
    for name in (family.name for family in dualpipe.catalog()):
        if name in FROM_COSTS:
            continue
        texts[name] = run_schedule(rank, name, 2 * ranks, 4 * ranks)
    for name in ["zb1p", "interleaved"]:
        run_schedule(rank, name, 2 * ranks, 4 * ranks + 1)  # the first one has a row more
    return texts


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_schedule_gives_the_whole_models_bits(ranks):
    for texts in worlds.values(worlds.run(ranks, all_schedules, timeout=250)):
        for name in ["zb1p", "zb-h2", "zbv"]:
            assert texts[name].startswith("100.0%"), texts[name]


# --- users' kinds of code


class Several(nn.Module):
    """Several tensors of different types; a mask that needs no gradient, one that nobody uses, None, a view."""

    def __init__(self, number):
        super().__init__()
        self.block = Block(number)
        self.is_first = number == 0

    def forward(self, x, mask=None, nothing=None, unused=None):
        if mask is None:
            mask = x[:, :, 0] > 0
        y = self.block(x) * mask[:, :, None]
        return y.transpose(1, 2).transpose(1, 2)[:, :, :], mask, None, y.sum()


class Dropping(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.block = Block(number)
        self.number = number

    def forward(self, x):
        torch.manual_seed(int(x.detach().abs().sum() * 1000) % 2**31)
        return F.dropout(self.block(x), 0.4, self.training)


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self, number):
        super().__init__()
        self.block = Block(number)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True

    def forward(self, x):
        return super().forward(x if x.requires_grad else x.clone().requires_grad_())


class Autocast(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.block = Block(number).float()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.block.down(F.gelu(self.block.up(x.float()))).float()


class Shared(nn.Module):
    """One weight in two layers of a stage."""

    def __init__(self, number):
        super().__init__()
        self.block = Block(number)

    def forward(self, x):
        return self.block(self.block(x))


class Frozen(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.block = Block(number)
        self.block.up.weight.requires_grad_(number != 0)
        self.block.norm.requires_grad_(False)

    def forward(self, x):
        return self.block(x)


class AllFrozen(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.block = Block(number).requires_grad_(number > 0)

    def forward(self, x):
        return self.block(x)


class InPlace(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.block = Block(number)

    def forward(self, x):
        x = x * 1 if not x.requires_grad or x.is_leaf else x
        return self.block(x.mul_(1.5))


class Normed(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=1).double()
        self.norm = nn.BatchNorm1d(3).double()
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=DOUBLE))

    def forward(self, x):
        return self.norm(self.conv(x))


class Transformers(nn.Module):
    """A layer as transformers' Conv1D has it, and an embedding with a padding index."""

    def __init__(self, number):
        super().__init__()
        torch.manual_seed(number)
        self.embedding = nn.Embedding(11, HIDDEN, padding_idx=3).double() if number == 0 else None
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN, dtype=DOUBLE))
        self.bias = nn.Parameter(torch.zeros(HIDDEN, dtype=DOUBLE))
        self.norm = nn.RMSNorm(HIDDEN).double()

    def forward(self, x):
        if self.embedding is not None:
            x = self.embedding((x[:, :, 0].abs() * 5).long() % 11)
        size = x.shape
        return torch.addmm(self.bias, self.norm(x).reshape(-1, HIDDEN), self.weight).view(size)


KINDS = [
    Several,
    Dropping,
    Checkpointed,
    Reentrant,
    Autocast,
    Shared,
    Frozen,
    AllFrozen,
    InPlace,
    Normed,
    Transformers,
]


def kinds_of_code(rank, schedule):
    ranks = dist.get_world_size()
    x, y = data(8)
    reports = {}
    for kind in KINDS:
        stage = kind(rank)
        pipe = dualpipe.Pipeline(stage, schedule, 4)
        loss, outputs = pipe.step(
            x, criterion=lambda out, *rest: loss_of(out, rest[-1].to(out.dtype)), labels=y, return_outputs=True
        )
        stages = [kind(number) for number in range(ranks)]
        losses = []
        for input, target in zip(x.tensor_split(4), y.tensor_split(4)):
            values = (input,)
            for each in stages:
                values = each(*values)
                values = values if isinstance(values, tuple) else (values,)
            losses.append(loss_of(values[0], target.to(values[0].dtype)))
            if losses[-1].requires_grad:
                losses[-1].backward()
        if loss is not None:
            assert torch.equal(loss, torch.stack(losses).detach()), kind
        for name, parameter in stages[rank].named_parameters():
            got = dict(stage.named_parameters())[name].grad
            if parameter.grad is None:
                assert got is None or not got.any(), (kind, name)
            elif kind is Shared:  # autograd adds the two first; here each is added by itself
                torch.testing.assert_close(got, parameter.grad, rtol=1e-12, atol=1e-12)
            else:
                assert got is not None, (kind, name)
                assert torch.equal(got, parameter.grad), (kind, name, (got - parameter.grad).abs().max())
        if kind is Normed:
            for name, buffer in stages[rank].named_buffers():
                assert torch.equal(buffer, dict(stage.named_buffers())[name]), name
        reports[kind.__name__] = pipe.weight_gradients()
    return reports


def other_uses(rank):
    """Shapes that change between steps, training and evaluation in turn, gradients that are there already."""
    blocks = [Block(n) for n in range(2)]
    pipe = dualpipe.Pipeline(Block(rank), "1f1b", 4)
    module = pipe._modules[0]
    expected = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for rows, trains in [(8, True), (8, False), (12, True), (5, True), (8, True), (5, False)]:
        x, y = data(rows)
        with torch.set_grad_enabled(trains):
            loss, outputs = pipe.step(x, criterion=loss_of, labels=y, return_outputs=True)
        assert rank == 0 or len(outputs) == rows
        if trains:
            _, gradients = whole(blocks, x, y, 4)
            got = {n: p.grad for n, p in module.named_parameters()}
            expected = {n: each + gradients[rank][n] for n, each in expected.items()}
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        loss, outputs = pipe.step(x)
        assert loss is None and (rank == 0 or outputs.shape == x.shape)
    # The last stage returns the loss itself, scaled.
    pipe = dualpipe.Pipeline([Block(0), nn.Sequential(Block(1), Mean())][rank], "gpipe", 2)
    loss, _ = pipe.step(x, loss_scale=0.5)
    return None if loss is None else loss.tolist()


class Mean(nn.Module):
    def forward(self, x):
        return x.square().mean()


def side_by_side(rank):
    """Two pipelines in one world of four, each over its group and with its own numbers; one of them backwards."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    of, number = divmod(rank, 2)
    mapping = [0, 1] if of == 0 else [1, 0]
    stage = mapping[number]
    module = Block(stage)
    pipe = dualpipe.Pipeline(module, "zb1p", 4, process_group=groups[of], rank_mapping=mapping)
    assert pipe.stages == [stage]
    x, y = data(8)
    expected, gradients = whole([Block(0), Block(1)], x, y, 4)
    for _ in range(2):
        module.zero_grad()
        loss, _ = pipe.step(x, criterion=loss_of, labels=y)
    assert (loss is not None) == (stage == 1)
    if loss is not None:
        assert torch.equal(loss, expected)
    check_equal({n: p.grad for n, p in module.named_parameters()}, gradients[stage], "side by side")


def replicas(rank):
    """DistributedDataParallel around the stages: 2 replicas of a pipeline of 2."""
    pipelines = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    replica, stage = divmod(rank, 2)
    module = nn.parallel.DistributedDataParallel(Block(stage), process_group=across[stage])
    pipe = dualpipe.Pipeline(module, "1f1b", 4, process_group=pipelines[replica])
    x, y = data(16)
    pipe.step(x.chunk(2)[replica], criterion=loss_of, labels=y.chunk(2)[replica])
    _, gradients = whole([Block(0), Block(1)], x, y, 8)
    for name, gradient in gradients[stage].items():
        torch.testing.assert_close(
            dict(module.module.named_parameters())[name].grad, gradient / 2, rtol=1e-12, atol=1e-13
        )


def given_schedules(rank, folder):
    """A schedule that depends on costs, and one in a file; measured."""
    x, y = data(8)
    _, gradients = whole([Block(0), Block(1)], x, y, 4)
    made = dualpipe.schedule("zb-auto", ranks=2, microbatches=4, forward="1ms", backward="2ms", weight="1ms")
    folder = folder / str(rank)  # as on machines of their own
    folder.mkdir()
    path = folder / "schedule.csv"
    path.write_text(dualpipe.schedule("1f1b", ranks=2, microbatches=4).lower().to_csv())
    for schedule in (made, path):
        module = Block(rank)
        pipe = dualpipe.Pipeline(module, schedule)
        with dualpipe.profile() as measured:
            pipe.step(x, criterion=loss_of, labels=y)
        check_equal({n: p.grad for n, p in module.named_parameters()}, gradients[rank], str(schedule))
        timeline = measured.timeline
        assert timeline.is_measured and timeline.ranks == 2 and timeline.makespan > 0
        assert len(timeline.ops) == len(timeline.spans) == (24 if schedule is made else 16)
        assert str(timeline.makespan) or str(measured)
        assert str(dualpipe.simulate(schedule if schedule is made else str(path)).compare(timeline))
    dualpipe.utils.enable_profiling(folder)
    pipe.step(x, criterion=loss_of, labels=y)
    profiler = dualpipe.utils.get_profiler()
    profiler.print_summary()
    assert profiler.get_summary() and Path(profiler.save_to_file(f"trace{rank}.json")).stat().st_size > 100
    dualpipe.profiler.active.clear()
    with pytest.raises(dualpipe.InputError, match="4 micro-batches, and 8"):
        dualpipe.Pipeline(module, path, 8)


def of_two(rank, folder):
    reports = kinds_of_code(rank, "zb1p")
    kinds_of_code(rank, "1f1b")
    other_uses(rank)
    given_schedules(rank, folder)
    return reports


def test_kinds_of_code(tmp_path):
    for reports in worlds.values(worlds.run(2, of_two, tmp_path, timeout=250)):
        for kind in ["Several", "Dropping", "Checkpointed", "Transformers"]:
            assert reports[kind].share == 1, (kind, reports[kind])
        assert reports["Normed"].computed_in_i and all("norm" in each for each in reports["Normed"].computed_in_i)


def of_four(rank):
    side_by_side(rank)
    replicas(rank)


def test_groups_of_a_world():
    worlds.values(worlds.run(4, of_four, timeout=250))


def compiled(rank):
    stage = Block(rank)
    pipe = dualpipe.Pipeline(torch.compile(stage) if rank == 1 else stage, "zb1p", 4)
    x, y = data(8)
    for _ in range(2):
        stage.zero_grad()
        loss, _ = pipe.step(x, criterion=loss_of, labels=y)
    losses, gradients = whole([Block(0), Block(1)], x, y, 4)
    if loss is not None:
        torch.testing.assert_close(loss, losses, rtol=1e-10, atol=1e-12)
    got = {n: p.grad for n, p in stage.named_parameters()}
    torch.testing.assert_close(got, gradients[rank], rtol=1e-10, atol=1e-12)
    return pipe.weight_gradients()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler (c++), and there is none")
def test_compiled_stages(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or it has processes of its own
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    first, second = worlds.values(worlds.run(2, compiled, timeout=250))
    assert first.share == 1 and second.share == 0 and second.computed_in_i


def test_a_process_by_itself():
    def alone(_):
        dist.destroy_process_group()
        module = Block(0)
        x, y = data(4)
        loss, outputs = dualpipe.Pipeline(module, "1f1b", 2).step(x, criterion=loss_of, labels=y, return_outputs=True)
        expected, gradients = whole([Block(0)], x, y, 2)
        assert torch.equal(loss, expected) and outputs.shape == x.shape
        check_equal({n: p.grad for n, p in module.named_parameters()}, gradients[0], "alone")

    worlds.values(worlds.run(1, alone))
