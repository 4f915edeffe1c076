"""What goes wrong: each rank hears of it, in time, in words that name rank, op and cause."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import worlds
from torch import nn

import dualpipe

TIMEOUT = 20.0


class Stage(nn.Module):
    def __init__(self, fails=None, at=2):
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        self.fails, self.at, self.seen = fails, at, 0

    def forward(self, x):
        self.seen += 1
        if self.fails == "wider":
            return F.pad(self.linear(x), (0, 1))
        if self.fails == "forward" and self.seen > self.at:
            raise KeyError("of the forward")
        if self.fails == "backward" and self.seen > self.at:
            return Failing.apply(self.linear(x))
        if self.fails == "killed" and self.seen > self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise LookupError("of the backward")


class Hooked(Stage):
    @staticmethod
    def overlapped_forward_backward(*arguments):
        raise ArithmeticError("of the hook")


def failing_criterion(output, target):
    raise OverflowError("of the criterion")


def batch(rows=8, dtype=torch.float64):
    return torch.ones(rows, 4, dtype=dtype)


GIVEN = object()


def attempt(pipe, x=GIVEN, **arguments):
    """What step() raised: class, text, notes; and how long it took."""
    begin = time.monotonic()
    x = batch() if x is GIVEN else x
    try:
        pipe.step(x, **{"criterion": F.mse_loss, "labels": x, **arguments})
    except BaseException as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", []), time.monotonic() - begin
    return "nothing", "", [], time.monotonic() - begin


def exceptions(rank):
    """On rank 1; and then the same pipeline runs again."""
    found = {}
    for where in ["forward", "backward", "criterion"]:
        stage = Stage(where if rank == 1 else None)
        pipe = dualpipe.Pipeline(stage, "1f1b", 4, timeout=TIMEOUT)
        criterion = failing_criterion if where == "criterion" else F.mse_loss
        found[where] = attempt(pipe, criterion=criterion)
        stage.fails = None
        found[where + " again"] = attempt(pipe)
    pipe = dualpipe.DualPipeV([Hooked(), Hooked()], timeout=TIMEOUT)
    if rank == 1:
        Hooked.overlapped_forward_backward = staticmethod(
            lambda *a: (_ for _ in ()).throw(ArithmeticError("of the hook"))
        )
    x = batch()
    try:
        pipe.step(x, num_chunks=8, criterion=F.mse_loss, labels=[x])
    except Exception as error:
        found["hook"] = (type(error).__name__, str(error), getattr(error, "__notes__", []), 0)
    return found


def disagreements(rank):
    """What the two ranks bring does not fit together."""
    found = {}
    stage = Stage()
    found["schedules"] = attempt(dualpipe.Pipeline(stage, ["gpipe", "1f1b"][rank], 4, timeout=TIMEOUT))
    found["chunks"] = attempt(dualpipe.Pipeline(stage, "1f1b", [4, 8][rank], timeout=TIMEOUT))
    pipe = dualpipe.Pipeline(stage, "1f1b", 4, timeout=TIMEOUT)
    found["rows"] = attempt(pipe, batch([8, 12][rank]))
    found["dtypes"] = attempt(
        pipe,
        batch(dtype=[torch.float64, torch.float32][rank]),
        criterion=lambda output, target: torch.linalg.vecdot(output, target).sum(),
    )
    narrow, single = Stage(), Stage()
    narrow.linear = nn.Linear(3, 4).double()
    single.linear = nn.Linear(4, 4)
    found["stage shapes"] = attempt(dualpipe.Pipeline([stage, narrow][rank], "1f1b", 4, timeout=TIMEOUT))
    found["stage dtypes"] = attempt(dualpipe.Pipeline([stage, single][rank], "1f1b", 4, timeout=TIMEOUT))
    changes = Stage()
    changing = dualpipe.Pipeline(changes, "1f1b", 4, timeout=TIMEOUT)
    found["first shapes"] = attempt(changing)
    changes.fails = "wider" if rank == 0 else None
    found["later shapes"] = attempt(changing)
    found["criterion"] = attempt(pipe, criterion=lambda output, target: output)
    found["no inputs"] = attempt(pipe, None if rank == 0 else batch(), labels=batch())
    with torch.set_grad_enabled(rank == 0):
        found["modes"] = attempt(pipe)
    found["at last"] = attempt(pipe)
    return found


def both(rank):
    return exceptions(rank), disagreements(rank), leaves_nothing(rank), many_steps(rank)


def leaves_nothing(rank):
    """A pipeline that is dropped is gone, with its modules, also after a failure."""
    kept = []
    for fails in (None, "forward" if rank == 1 else None):
        stage = Stage(fails)
        pipe = dualpipe.Pipeline(stage, "zb1p", 4, timeout=TIMEOUT)
        attempt(pipe)
        kept += [
            weakref.ref(stage),
            weakref.ref(pipe),
            weakref.ref(pipe._stages[0]),
            weakref.ref(stage.linear.weight),
        ]
        del stage, pipe
        gc.collect()
    return sum(each() is not None for each in kept)


def resources():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


def many_steps(rank):
    """How much a thousand steps have left behind, in bytes and descriptors."""
    pipe = dualpipe.Pipeline(Stage(), "1f1b", 2, timeout=60)
    x = batch(2)
    for _ in range(200):
        pipe.step(x, criterion=F.mse_loss, labels=x)
    before = resources()
    for _ in range(1000):
        pipe.step(x, criterion=F.mse_loss, labels=x)
    return [now - then for now, then in zip(resources(), before)]


def test_two_ranks():
    found = worlds.values(worlds.run(2, both, timeout=280))
    first, second = (each[0] for each in found)
    for where, kind in [("forward", "KeyError"), ("backward", "LookupError"), ("criterion", "OverflowError")]:
        own, of_other = second[where], first[where]
        assert own[0] == kind and f"of the {where}" in own[1], own
        assert any(note.startswith("rank 1 failed in 1") for note in own[2]), own
        assert of_other[0] == "TransportError" and of_other[3] < TIMEOUT, of_other
        assert "rank 1 failed in 1" in of_other[1] and f"{kind}: " in of_other[1] and f"of the {where}" in of_other[1]
        assert first[where + " again"][0] == second[where + " again"][0] == "nothing", (first, second)
    assert {first["hook"][0], second["hook"][0]} <= {"ArithmeticError", "TransportError"}
    assert "ArithmeticError" in (first["hook"][0], second["hook"][0])

    for found_here in (each[1] for each in found):
        for what, parts in {
            "schedules": ["rank 0 runs schedule gpipe of 2 ranks", "rank 1 runs schedule 1f1b of 2 ranks"],
            "chunks": ["rank 0 runs schedule 1f1b of 2 ranks, 4 micro-batches", "rank 1", "8 micro-batches"],
            "rows": ["rank 0 gave inputs float64[8, 4], 8 rows", "rank 1 labels float64[12, 4]", "12 rows"],
            "modes": ["training", "evaluation"],
            "no inputs": ["rank 0", "got no inputs"],
            "criterion": ["rank 1 failed in 1F0", "one number"],
            "dtypes": ["rank 1 failed in 1F0"],
            "stage shapes": ["rank 1 failed in 1F0", "stage 1 was given float64[2, 4] by stage 0 (rank 0)"],
            "stage dtypes": ["rank 1 failed in 1F0", "stage 1 was given float64[2, 4] by stage 0 (rank 0)"],
            "later shapes": ["stage 0 (rank 0) sends Double[2,5] in 0SEND_F0 to stage 1 (rank 1)", "sent Double[2,4]"],
        }.items():
            kind, text, notes, _ = found_here[what]
            assert kind != "nothing", what
            for part in parts:
                assert part in text or any(part in note for note in notes), (what, part, found_here[what])
        assert found_here["first shapes"][0] == found_here["at last"][0] == "nothing", found_here
    for _, _, left, (grown, descriptors, threads) in found:
        assert left == 0
        assert grown < 8 << 20 and descriptors <= 0 and threads <= 0


def lost(rank, how):
    """Rank 1 is gone, or does not come; what the others say."""
    stage = Stage("killed" if rank == 1 and how == "killed" else None)
    pipe = dualpipe.Pipeline(stage, "1f1b", 8, timeout=3)
    if how == "absent":
        stage.fails = None
        attempt(pipe)
        if rank == 1:
            time.sleep(12)
            return None
    return attempt(pipe)


@pytest.mark.parametrize("how", ["killed", "absent"])
def test_a_rank_that_is_lost_is_named(how):
    for rank, each in enumerate(worlds.run(3, lost, how)):
        if rank == 1:
            continue
        assert not isinstance(each, worlds.Raised), each
        kind, text, _, seconds = each
        assert kind == "TransportError" and "rank 1" in text and seconds < 10, each


def interrupted(rank):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stage = Stage()
    pipe = dualpipe.Pipeline(stage, "1f1b", 4, timeout=30)
    attempt(pipe)
    if rank == 1:
        time.sleep(3)
        return attempt(pipe), attempt(pipe)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    first = attempt(pipe)
    return first, attempt(pipe)


def test_ctrl_c_ends_a_wait():
    found = worlds.values(worlds.run(2, interrupted))
    (kind, _, _, seconds), again = found[0]
    assert kind == "KeyboardInterrupt" and seconds < 10, found
    assert found[1][0][0] == "TransportError" and "rank 0 was interrupted" in found[1][0][1], found
    assert again[0] == found[1][1][0] == "nothing", found


LEAKS = """
import torch, torch.nn.functional as F, dualpipe

def criterion(output, target):
    raise ArithmeticError("of the criterion")

x = torch.ones(4, 2)
stage = torch.nn.Linear(2, 2)
pipe = dualpipe.Pipeline(stage, "zb1p", 2)
with dualpipe.profile() as measured:
    pipe.step(x, criterion=F.mse_loss, labels=x)
timeline = measured.timeline
other = dualpipe.Pipeline(stage, dualpipe.schedule("1f1b", ranks=1, microbatches=2))
try:
    other.step(x, criterion=criterion, labels=x)
except ArithmeticError as error:
    kept = error
print(pipe.weight_gradients(), timeline.makespan > 0)
"""


def test_nothing_is_left_at_the_end():
    """Who leaks an object of the binding is told so by nanobind when the interpreter ends."""
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.endswith("True\n"), done.stdout


def test_a_fork_after_a_step():
    """A process that was forked from one that has run a step runs its own."""

    def forks(_):
        dist.destroy_process_group()
        dualpipe.Pipeline(Stage(), "1f1b", 2).step(batch(), criterion=F.mse_loss, labels=batch())
        child = os.fork()
        if child == 0:
            dualpipe.Pipeline(Stage(), "1f1b", 2).step(batch(), criterion=F.mse_loss, labels=batch())
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert worlds.values(worlds.run(1, forks)) == [7]
