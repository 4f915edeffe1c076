"""A sweep is the same by threads, by processes, by dask's workers, and by the command line."""

import concurrent.futures
import os
import pickle
import subprocess

import pytest

import dualpipe

GRID = {
    "schedules": ["1f1b", "zb1p", "interleaved", "dualpipe"],
    "ranks": [2, 4],
    "microbatches": [8, 10],
    "chunks": [2],
    "set": {"latency": ["0", "20us"], "forward": ["1x", "1.5x"]},
    "activation_bytes": "1MiB",
}
OPTIONS = (
    "--schedules 1f1b,zb1p,interleaved,dualpipe -p 2,4 -m 8,10 -v 2 --set latency=0,20us --set forward=1x,1.5x "
    "--activation-bytes 1MiB"
).split()


@pytest.fixture(name="of_command_line")
def run_command_line(tmp_path):
    path = tmp_path / "line.jsonl"
    subprocess.run([os.environ["DUALPIPE_SIM"], "sweep", *OPTIONS, "-o", path], check=True)
    return path.read_bytes()


def saved(found, tmp_path):
    found.save(tmp_path / "sweep.jsonl")
    return (tmp_path / "sweep.jsonl").read_bytes()


def test_is_that_of_the_command_line(tmp_path, of_command_line):
    found = dualpipe.sweep(**GRID, points_per_task=7)
    assert saved(found, tmp_path) == of_command_line
    assert len(found) == len(found.grid) == 4 * 4 * 4
    rows = found.rows
    assert [row["point"] for row in rows] == list(range(len(found)))
    row = rows[0]
    timeline = dualpipe.simulate("1f1b", ranks=2, microbatches=8, activation_bytes="1MiB")
    assert row["makespan_ns"] == timeline.makespan and row["latency"] == "0"
    assert "dualpipe" in {row["schedule"] for row in rows}
    assert repr(found).startswith("64 points, ")


def test_is_the_same_by_processes(tmp_path, of_command_line):
    grid = dualpipe.Grid(**GRID)
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        assert saved(dualpipe.sweep(grid, executor=executor, points_per_task=5), tmp_path) == of_command_line


def test_is_the_same_by_dask(tmp_path, of_command_line):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        found = dualpipe.sweep(dualpipe.Grid(**GRID), executor=client.get_executor(), points_per_task=9)
    assert saved(found, tmp_path) == of_command_line


def test_schedules_of_files(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(dualpipe.schedule("zb1p", ranks=4, microbatches=8).to_json())
    grid = dualpipe.Grid(schedules=["zb1p", path], ranks=[2, 4], microbatches=[8, 10], set={"speed": ["1", "0.5@1"]})
    assert len(grid) == 4 * 2 + 2
    path.unlink()  # the grid has it, wherever it goes
    found = dualpipe.sweep(pickle.loads(pickle.dumps(grid)), points_per_task=3)
    mine = [row for row in found if row["schedule"] == str(path)]
    same = [row for row in found if row["schedule"] == "zb1p" and row["ranks"] == 4 and row["microbatches"] == 8]
    assert [row["makespan_ns"] for row in mine] == [row["makespan_ns"] for row in same] and len(mine) == 2
    drawn = dualpipe.sweep(schedules="1f1b", ranks=4, microbatches=8, straggler=[0.5, 1], seeds=5)
    assert len({row["makespan_ns"] for row in drawn}) > 1 and len(drawn) == 10


def test_a_grid_travels():
    grid = dualpipe.Grid(**GRID)
    again = pickle.loads(pickle.dumps(grid))
    assert again.to_json() == grid.to_json() and again.header == grid.header
    assert again.lines(3, 5) == grid.lines(3, 5)
    assert dualpipe.Grid.from_json(grid.to_json()).columns == grid.columns


def test_data_frame():
    pandas = pytest.importorskip("pandas")
    found = dualpipe.sweep(**GRID)
    frame = found.to_pandas()
    assert list(frame["point"]) == list(range(64)) and set(frame.columns) == set(found.grid.columns)
    assert isinstance(frame, pandas.DataFrame)


def test_what_cannot_be():
    with pytest.raises(dualpipe.InputError, match="give ranks and microbatches"):
        dualpipe.sweep(schedules=["1f1b"])
    with pytest.raises(dualpipe.InputError, match="did you mean latency"):
        dualpipe.Grid(ranks=2, microbatches=4, set={"latencie": ["0"]})
    with pytest.raises(TypeError, match="give ranks to Grid"):
        dualpipe.sweep(dualpipe.Grid(**GRID), ranks=2)
    with pytest.raises(dualpipe.InputError, match="64 points"):
        dualpipe.Grid(**GRID).lines(0, 65)
    with pytest.raises(ValueError, match="at least 1"):
        dualpipe.sweep(**GRID, points_per_task=0)
    with pytest.raises(dualpipe.InputError):
        dualpipe.Grid.from_json("{")
