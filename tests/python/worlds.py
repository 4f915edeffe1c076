"""Processes of a test, connected by gloo."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

torch.set_num_threads(1)  # so that there are no threads that a forked process would lack


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _process(connection, rank: int, ranks: int, port: int, function: Callable, arguments: tuple) -> None:
    faulthandler.enable()
    # Torch makes its pool of threads anew here, and not in two threads at once, one of which would find none.
    torch.set_num_threads(1)
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # of a store that has gone
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    try:
        result = ("returned", function(rank, *arguments))
    except BaseException as error:
        result = ("raised", (type(error).__name__, str(error), traceback.format_exc()))
    connection.send(result)
    connection.poll(30)  # tensors are in memory of this process until they are received
    time.sleep(0.2)
    os._exit(0)


class Raised:
    """What a rank raised."""

    def __init__(self, kind: str, text: str, trace: str):
        self.kind, self.text, self.trace = kind, text, trace

    def __repr__(self) -> str:
        return f"{self.kind}: {self.text}\n{self.trace}"


class Killed:
    """In place of the result of a rank that gave none."""


def start(ranks: int, function: Callable, *arguments) -> list:
    """A process for each rank, which calls function(rank, *arguments)."""
    context = multiprocessing.get_context("fork")
    port = _free_port()
    started = []
    for rank in range(ranks):
        mine, theirs = context.Pipe()
        process = context.Process(target=_process, args=(theirs, rank, ranks, port, function, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, mine))
    return started


def results(started: list, timeout: float = 60) -> list:
    """By rank what its process returned, what it raised (Raised), or Killed."""
    deadline = time.monotonic() + timeout
    open_ones = {connection: rank for rank, (_, connection) in enumerate(started)}
    found: list = [Raised("Hung", "no result came in time", "")] * len(started)
    while open_ones:
        ready = wait(list(open_ones), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            rank = open_ones.pop(connection)
            try:
                kind, result = connection.recv()
                connection.send("received")
                found[rank] = result if kind == "returned" else Raised(*result)
            except (EOFError, ConnectionError):
                found[rank] = Killed
    for process, _ in started:
        process.join(2)
        process.kill()
    return found


def run(ranks: int, function: Callable, *arguments, timeout: float = 60) -> list:
    return results(start(ranks, function, *arguments), timeout)


def values(found: list) -> list:
    """The results, none of which is an error."""
    errors = [f"rank {rank}: {each}" for rank, each in enumerate(found) if isinstance(each, Raised) or each is Killed]
    assert not errors, "\n".join(errors)
    return found
