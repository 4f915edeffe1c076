"""Sweeps over a grid, by whatever runs functions somewhere else: threads, processes, or the workers of a cluster."""

from __future__ import annotations

import functools
import json
import os
import typing
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from ._sim import Grid


@functools.lru_cache(maxsize=4)
def _grid(text: str) -> Grid:
    return Grid.from_json(text)


def _lines(text: str, begin: int, end: int) -> str:
    """Of some points; called where the work is done, which keeps the grid for the next ones."""
    return _grid(text).lines(begin, end)


class Sweep:
    """What a sweep found: a record for each point, in the order of their numbers."""

    def __init__(self, grid: Grid, blocks: Iterable[str]) -> None:
        self.grid = grid
        self._lines = [line for block in blocks for line in block.splitlines()]

    @property
    def rows(self) -> list[dict[str, typing.Any]]:
        """A record for each point; one that has no figures has the reason in "left_out"."""
        return [json.loads(line) for line in self._lines]

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[dict[str, typing.Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        left_out = sum('"left_out":' in line for line in self._lines)
        return f"{len(self)} points, {left_out} of them left out"

    def to_pandas(self) -> typing.Any:
        """A data frame with a row for each point. Needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows, columns=self.grid.columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file of `dualpipe-sim sweep --output`, byte for byte, for `merge` and `report`."""
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(self.grid.header)
            file.writelines(line + "\n" for line in self._lines)


def sweep(
    grid: Grid | None = None, *, executor: Executor | None = None, points_per_task: int = 256, **keywords: typing.Any
) -> Sweep:
    """Evaluates every point of a grid, or of Grid(**keywords).

    `executor` is any concurrent.futures.Executor: a ProcessPoolExecutor, dask.distributed's `client.get_executor()`,
    ray.util.multiprocessing's, mpi4py.futures' MPIPoolExecutor. Its workers must be able to import dualpipe. Without
    one it is a thread for each core. The result is the same whatever runs it. Raises InputError.
    """
    if grid is None:
        grid = Grid(**keywords)
    elif keywords:
        raise TypeError(f"sweep: a Grid says all there is; give {', '.join(keywords)} to Grid() itself")
    if points_per_task < 1:
        raise ValueError("points_per_task: it must be at least 1")
    begins = range(0, len(grid), points_per_task)
    ends = [min(begin + points_per_task, len(grid)) for begin in begins]
    texts = [grid.to_json()] * len(ends)
    if executor is not None:
        return Sweep(grid, executor.map(_lines, texts, begins, ends))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return Sweep(grid, threads.map(_lines, texts, begins, ends))
