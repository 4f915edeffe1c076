"""What the examples share: processes, devices, and a text to learn."""

from __future__ import annotations

import argparse
import os
import pydoc_data.topics
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing as mp


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--num-gpus", type=int, default=2, help="how many processes, each with a device (2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="cuda, if there are as many GPUs; else cpu")
    parser.add_argument("--schedule", default="zb1p", help="a name of dualpipe.catalog() (zb1p)")
    parser.add_argument("--microbatches", type=int, default=8, help="of a step (8)")
    parser.add_argument("--steps", type=int, default=60, help="of the optimizer (60)")
    return parser


def device_of(given: str | None, processes: int) -> str:
    return given or ("cuda" if torch.cuda.device_count() >= processes else "cpu")


def launch(function: Callable, given: argparse.Namespace) -> None:
    """Calls function(given) in as many processes, as torchrun would start them."""
    given.device = device_of(given.device, given.num_gpus)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    mp.spawn(_process, args=(function, given, port), nprocs=given.num_gpus)


def _process(rank: int, function: Callable, given: argparse.Namespace, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(given.num_gpus))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if given.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // given.num_gpus))
    function(given)


def characters() -> torch.Tensor:
    """Python's manual, as numbers below 96: letters and signs from the space on, and the end of a line."""
    text = "\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    codes = torch.tensor(list(text.encode("ascii", "replace")))
    return torch.where(codes == 10, 95, codes - 32).clamp(0, 95)
