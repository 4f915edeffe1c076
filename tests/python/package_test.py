"""The package: what it exports, its types, its tools, and what it leaves behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dualpipe
from cli import ENVIRONMENT, sim

EXAMPLE = """
import dualpipe
import numpy as np

costs = dualpipe.Costs(forward=["1ms", 2, 0.5, 1], comm="links", latency="20us")
timeline: dualpipe.Timeline = dualpipe.simulate("1f1b", ranks=4, microbatches=8, costs=costs)
bubble: float = timeline.bubble
makespan: int = timeline.makespan
longest: np.int64 = (timeline.spans[:, 1] - timeline.spans[:, 0]).max()
rows: list[dict[str, object]] = dualpipe.table(ranks=[4, 8], microbatches=8, schedules=["1f1b", "zb1p"]).rows
names: list[str] = [family.name for family in dualpipe.catalog()]
cycle: str | None = dualpipe.schedule("zb1p", ranks=4, microbatches=8).find_deadlock("links")
print(timeline.compare(timeline), timeline.svg(window=(0, "2ms")), timeline.memory(0)[1].max())
"""


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True,
                          env={**os.environ, **environment})


def test_exports() -> None:
    assert sorted(dualpipe.__all__) == dualpipe.__all__
    for name in dualpipe.__all__:
        assert getattr(dualpipe, name).__doc__
    assert dualpipe.__version__ == sim("--version").strip()


def test_python_m_is_the_tool() -> None:
    for arguments in (["--version"], ["simulate", "1f1b", "-p", "2", "-m", "2"]):
        command = [sys.executable, "-m", "dualpipe", *arguments]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
        assert printed.stdout == sim(*arguments)
    wrong = subprocess.run([sys.executable, "-m", "dualpipe", "simulate"], capture_output=True, text=True)
    assert wrong.returncode == 2


def test_signatures_have_every_option() -> None:
    """Keywords are the options of the command line, but for those that say where a text goes."""
    elsewhere = {"costs", "json", "csv", "trace", "svg", "gantt", "width", "svg-width", "title", "svg-memory", "window",
                 "trace-ranks", "trace-window", "format", "help"}
    for tool, function in (("simulate", dualpipe.simulate), ("table", dualpipe.table)):
        offered = set(re.findall(r"--([a-z-]+)", sim("help", tool).split("Examples:")[0])) - elsewhere
        signature = function.__nb_signature__[0][0]
        accepted = {name.replace("_", "-") for name in re.findall(r"(\w+): ", signature)} - {"source", "costs"}
        assert accepted == offered


def test_types() -> None:
    pytest.importorskip("mypy")
    path = Path(dualpipe.__file__).parent
    assert (path / "py.typed").exists()

    def check(code: str) -> subprocess.CompletedProcess[str]:
        mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "-c", code]
        return subprocess.run(mypy, capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(path.parent)})

    done = check(EXAMPLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[arg-type]" in check(EXAMPLE + "dualpipe.simulate(7)\n").stdout


def test_nothing_leaks() -> None:
    fails = "\ntry:\n  dualpipe.simulate('1f1p')\nexcept dualpipe.InputError:\n  pass\n"
    done = run(EXAMPLE + "held = timeline.spans" + fails)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_without_numpy_and_pandas() -> None:
    code = """
import sys
sys.modules["numpy"] = sys.modules["pandas"] = None
import dualpipe
timeline = dualpipe.simulate("1f1b", ranks=2, microbatches=2)
print(timeline.makespan, dualpipe.table(ranks=2, microbatches=4))
for use in (lambda: timeline.spans, timeline.to_pandas, lambda: timeline.busy):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this needs the package numpy: pip install numpy") == 2
    assert done.stdout.count("this needs the package pandas: pip install pandas") == 1


def test_without_torch() -> None:
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import dualpipe
print("pytorch_schedule" in dualpipe.__all__)
try:
    dualpipe.pytorch_schedule
except ImportError as error:
    print(error)
"""
    done = run(code)
    assert done.stdout == "False\ndualpipe.pytorch_schedule() makes PyTorch's own runtime: pip install torch\n", done


def test_threads_run_side_by_side() -> None:
    """The interpreter goes on while the library works."""
    code = """
import threading, dualpipe
done = threading.Event()
ticks = 0
def work():
    dualpipe.simulate("1f1b", ranks=64, microbatches=4000)
    done.set()
thread = threading.Thread(target=work)
thread.start()
while not done.is_set():
    ticks += 1
    done.wait(0.001)
thread.join()
print(ticks)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
