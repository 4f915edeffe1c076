"""PyTorch's own runtime runs the schedules of one chain, and computes what the whole model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import worlds
from cli import sim
from pipeline_test import Block, data, loss_of, whole
from torch.distributed.pipelining import PipelineStage

import dualpipe

MICRO_BATCHES = 4


def check(runtime, blocks, what, expected, scale=1.0):
    """A step of the runtime, on the blocks of this rank by their numbers."""
    stages, losses, (x, y) = runtime._num_stages, [], data(8)
    expected_losses, gradients = expected
    runtime.step(*([x] if 0 in blocks else []), target=y if stages - 1 in blocks else None, losses=losses)
    assert len(losses) == (MICRO_BATCHES if stages - 1 in blocks else 0), what
    if losses:
        assert torch.equal(torch.stack(losses).detach(), expected_losses), what
    for number, block in blocks.items():
        for name, parameter in block.named_parameters():
            assert torch.equal(parameter.grad, gradients[number][name] * scale), (what, number, name)
        block.zero_grad()


def all_schedules(rank, folder):
    ran = []
    expected = {}
    for family in dualpipe.catalog():
        schedule = dualpipe.schedule(family.name, ranks=2, microbatches=MICRO_BATCHES)
        if len(schedule.chains) > 1:
            continue
        numbers = [stage for stage, each in enumerate(schedule.chains[0]) if each == rank]
        blocks = {number: Block(number) for number in numbers}
        # The last micro-batch's backward is the first one of looped BFS.
        order = range(MICRO_BATCHES)[:: -1 if family.name == "looped-bfs" else 1]
        key = (schedule.stages, order[0])
        if key not in expected:
            expected[key] = whole([Block(n) for n in range(schedule.stages)], *data(8), MICRO_BATCHES, [order])
        file = folder / f"{family.name}-{rank}.csv"
        lowered = schedule.lower()
        file.write_text(lowered.to_csv())
        modules = list(blocks.values())
        for name, given, scales in [("ops", schedule, False), ("lowered", lowered, True), ("csv", file, False)]:
            runtime = dualpipe.pytorch_schedule(given, modules, loss_fn=loss_of, scale_grads=scales)
            if name == "csv":  # without what we add
                runtime._load_csv(str(file), format="compute_comms")
            check(runtime, blocks, (family.name, name), expected[key], 1 / MICRO_BATCHES if scales else 1.0)
        ran.append(family.name)
    by_name(rank, expected[2, 0])
    return ran


def found(rank, file):
    """What dualpipe-sim search wrote, as PyTorch's runtime reads it."""
    numbers = [rank, 3 - rank]
    blocks = {number: Block(number) for number in numbers}
    expected = whole([Block(n) for n in range(4)], *data(8), MICRO_BATCHES, [range(MICRO_BATCHES)])
    runtime = dualpipe.pytorch_schedule(file, list(blocks.values()), loss_fn=loss_of, scale_grads=False)
    check(runtime, blocks, "found", expected)
    return numbers


def by_name(rank, expected):
    """A name, with PyTorch's stage; several steps."""
    block = Block(rank)
    stage = PipelineStage(block, rank, 2, torch.device("cpu"))
    runtime = dualpipe.pytorch_schedule("zb1p", stage, MICRO_BATCHES, loss_of, scale_grads=False)
    for _ in range(2):
        check(runtime, {rank: block}, "zb1p", expected)


def test_every_schedule_of_one_chain(tmp_path: Path) -> None:
    two_chains = {"dualpipe", "chimera", "chimera-shifted"}
    for ran in worlds.values(worlds.run(2, all_schedules, tmp_path, timeout=250)):
        assert set(ran) == {family.name for family in dualpipe.catalog()} - two_chains


def test_a_schedule_that_a_search_has_found(tmp_path: Path) -> None:
    file = tmp_path / "found.csv"
    costs = ["--forward", "1ms", "--backward", "2.3ms", "--weight", "0.7ms", "--latency", "0.1ms"]
    result = json.loads(sim("search", "--ranks", "2", "--microbatches", str(MICRO_BATCHES), *costs, "--placement", "v",
                            "--memory-limit", "1microbatches", "--budget", "3000", "-o", str(file), "--json", "-"))
    assert result["evaluations"] >= 3000, "the catalog had it already"
    assert worlds.values(worlds.run(2, found, file)) == [[0, 3], [1, 2]]


# By what PyTorch's runtime cannot run: what is asked for, and what the error says.
UNORDERED = "0F0,0F1,0B0,0B1\n1F1,1F0,1B0,1B1\n"
HANGS = "0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n"
SHARED = {
    "format": "dualpipe-schedule",
    "version": 1,
    "name": "tied",
    "ranks": 2,
    "micro_batches": 1,
    "chains": [[0, 1]],
    "weights": [0, 0],
    "ops": [["0F0", "0B0"], ["1F0", "1B0"]],
}


def refusals(rank, folder):
    files = {}
    for name, text in [("unordered.csv", UNORDERED), ("hangs.csv", HANGS), ("tied.json", json.dumps(SHARED))]:
        files[name] = folder / f"{rank}-{name}"
        files[name].write_text(text)
    one, two = Block(0), [Block(0), Block(1)]
    of_three = dualpipe.schedule("1f1b", ranks=3, microbatches=4)
    of_two = dualpipe.schedule("1f1b", ranks=2, microbatches=4)
    wrong_stage = PipelineStage(one, 1 - rank, 2, torch.device("cpu"))
    found = []
    for schedule, stages, microbatches in [
        ("dualpipe", two, 4),
        (of_three, one, None),
        (of_two, one, 8),
        (of_two, two, None),
        (of_two, wrong_stage, None),
        (files["unordered.csv"], one, None),
        (files["tied.json"], one, None),
        ("1f1b", one, None),
        ("1f1p", one, 4),
        ("interleaved", two, 5),
        (files["hangs.csv"], one, None),
    ]:
        try:
            dualpipe.pytorch_schedule(schedule, stages, microbatches, loss_of)
            found.append(("nothing", ""))
        except (dualpipe.InputError, dualpipe.DeadlockError) as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_what_it_cannot_run_is_refused(tmp_path: Path) -> None:
    expected = [
        ("InputError", ["schedule dualpipe has 2 chains, and PyTorch's runtime knows one", "dualpipev"]),
        ("InputError", ["schedule 1f1b is one of 3 ranks, and the process group has 2"]),
        ("InputError", ["1f1b is a schedule of 4 micro-batches, and 8 are asked for"]),
        ("InputError", ["schedule 1f1b has stages [", "give a module for each, in this order, and not 2"]),
        ("InputError", ["a PipelineStage of it is stage", "of 2"]),
        ("InputError", ["has 1F1 where 1F0 would be in turn"]),
        ("InputError", ["stages of schedule tied share weights"]),
        ("InputError", ["how many microbatches schedule 1f1b is to have is not said"]),
        ("InputError", ["did you mean 1f1b?"]),
        ("ShapeError", ["interleaved"]),
        ("DeadlockError", ["1B0", "0F1"]),
    ]
    for found in worlds.values(worlds.run(2, refusals, tmp_path)):
        for (kind, text), (wanted, parts) in zip(found, expected, strict=True):
            assert kind == wanted and all(part in text for part in parts), (kind, text)


def test_a_process_by_itself() -> None:
    def alone(_):
        block = Block(0)
        runtime = dualpipe.pytorch_schedule("1f1b", block, MICRO_BATCHES, loss_of, scale_grads=False)
        check(runtime, {0: block}, "alone", whole([Block(0)], *data(8), MICRO_BATCHES))

    worlds.values(worlds.run(1, alone))
