"""The examples, and the script that docs/python-training.md shows, run and check themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import dualpipe

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def output_of(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example() -> None:
    text = output_of(sys.executable, str(ROOT / "python/examples/example.py"))
    for name in ("DualPipe", "DualPipeV"):
        for rank in range(2):
            assert f"{name}, rank {rank}: losses and gradients are the whole model's" in text


def test_compare_schedules(tmp_path: Path) -> None:
    text = output_of(sys.executable, str(ROOT / "python/examples/compare_schedules.py"), str(tmp_path))
    assert "the shortest of those that fit" in text
    pictures = re.findall(r"^(\S+\.svg): (\d+) ms, ([\d.]+)% idle$", text, re.MULTILINE)
    assert len(pictures) == 2 and pictures[0][0] == "1f1b.svg", text
    assert float(pictures[1][2]) < float(pictures[0][2]), text
    for name, _, _ in pictures:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
    idle = [float(each) for each in re.findall(r"^\d+ micro-batches: 1f1b ([\d.]+)% idle", text, re.MULTILINE)]
    assert len(idle) == 4 and idle == sorted(idle, reverse=True), text


def test_two_pipelines() -> None:
    text = output_of(*TORCHRUN, "4", str(ROOT / "python/examples/two_pipelines.py"))
    losses = [float(each) for each in re.findall(r"replica 0, step \d: loss ([\d.]+)", text)]
    assert len(losses) == 5 and losses[-1] < losses[0], text


def test_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs/python-training.md").read_text()
    (block,) = re.findall(r"^```python train.py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(block)
    text = output_of(*TORCHRUN, "2", "train.py", cwd=tmp_path)
    assert re.search(r"loss 0\.\d{4}, outputs \(64, 16\)", text), text
    assert text.count("100.0% of the trained parameters have their gradients computed in W") == 2
    planned = dualpipe.simulate("zb1p", ranks=2, microbatches=8, costs=str(tmp_path / "costs.json"))
    assert planned.makespan > 0
    explained = output_of(os.environ["DUALPIPE_SIM"], "explain", "measured.json", "--no-what-if", cwd=tmp_path)
    assert "measured.json: 2 ranks" in explained and "the critical path" in explained, explained


def test_the_page_on_splitting(tmp_path: Path) -> None:
    page = (ROOT / "docs/splitting-models.md").read_text()
    (block,) = re.findall(r"^```python split.py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "split.py").write_text(block)
    text = output_of(*TORCHRUN, "2", "split.py", cwd=tmp_path)
    shown = [line for line in text.splitlines() if not line.startswith("loss ")]
    assert len(shown) == 5 and all(f"    {line}\n" in page for line in shown), text
    assert re.search(r"loss \d+\.\d{4}, 74 tensors", text), text


NEEDS = {"transformer": "torch", "vision": "torchvision", "trainer": "accelerate", "lightning": "lightning"}
SHORT = ["--num-gpus", "2", "--device", "cpu", "--steps", "6", "--microbatches", "4"]


@pytest.mark.parametrize("name", NEEDS)
def test_models_in_pipelines(name: str) -> None:
    """Shortened: a loss for the whole batch, and the picture of what two ranks did."""
    pytest.importorskip(NEEDS[name])
    text = output_of(sys.executable, str(ROOT / f"python/examples/{name}_example.py"), *SHORT)
    losses = [float(each) for each in re.findall(r"loss'?:? '?(\d+\.\d+)", text)]
    assert losses and 0 < min(losses) and max(losses) < 6, text
    assert name == "vision" or losses[-1] <= losses[0], text
    assert all(re.search(rf"^rank {rank}  .*F", text, re.MULTILINE) for rank in range(2)), text
