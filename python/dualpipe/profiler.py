"""What the steps of pipelines did: measured timelines, as those that are simulated."""

from __future__ import annotations

import os

from ._sim import Timeline

active: list[profile] = []


class profile:
    """Measures the steps of all pipelines that run while it is active, on all of their ranks:

        with dualpipe.profile() as measured:
            pipe.step(x, criterion=F.mse_loss, labels=(y,))
        print(measured)                                       # bubble, and why each rank was idle
        measured.timeline.compare(dualpipe.simulate(...))
        measured.timeline.write_trace("trace.json")

    All ranks of a pipeline are in it, or none. After each step they exchange what they did, beside the step's own time;
    of several steps it keeps the last one. How much memory ops took is in it if the pipeline was made with
    measure_memory.
    """

    def __init__(self) -> None:
        self._last: Timeline | None = None

    def __enter__(self) -> profile:
        active.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        active.remove(self)

    def record(self, timeline: Timeline) -> None:
        """Called by Pipeline.step()."""
        self._last = timeline

    @property
    def timeline(self) -> Timeline:
        """Of the last step."""
        if self._last is None:
            raise RuntimeError("no pipeline has run a step in this profile")
        return self._last

    def __str__(self) -> str:
        return "no step" if self._last is None else f"{self._last}\n{self._last.profile()}"


class Profiler(profile):
    """A profile that goes on, and writes into a folder."""

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)

    def get_summary(self) -> dict:
        """All figures of the last step, as Timeline.to_dict()."""
        return self.timeline.to_dict()

    def print_summary(self) -> None:
        print(self)

    def save_to_file(self, name: str) -> str:
        """Writes the last step as a Chrome trace, for ui.perfetto.dev, into log_dir; returns its path."""
        os.makedirs(self.log_dir, exist_ok=True)
        path = os.path.join(self.log_dir, name)
        self.timeline.write_trace(path)
        return path


_profiler: Profiler | None = None


def enable_profiling(log_dir: str | os.PathLike[str]) -> None:
    """From now on all pipelines of this process are measured; on all ranks, or none."""
    global _profiler
    if _profiler is not None:
        active.remove(_profiler)
    _profiler = Profiler(log_dir)
    active.append(_profiler)


def get_profiler() -> Profiler:
    if _profiler is None:
        raise RuntimeError("nothing is measured; call dualpipe.utils.enable_profiling(log_dir) first")
    return _profiler
