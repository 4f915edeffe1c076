"""Schedules: what the command line converts, validates and refuses."""

from pathlib import Path

import pytest

import dualpipe
from cli import options, shape, sim, sim_error

FAMILIES = [family.name for family in dualpipe.catalog()]


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_the_tools(family: str, tmp_path: Path) -> None:
    keywords = shape(family)
    schedule = dualpipe.schedule(family, **keywords)
    assert schedule.to_json() == sim("convert", family, *options(keywords), "--to", "json")
    assert schedule.lower().to_json() == sim("convert", family, *options(keywords), "--to", "json", "--lower")
    assert schedule.validate() == []
    assert schedule.find_deadlock("stream") is None
    path = tmp_path / "schedule.json"
    path.write_text(schedule.to_json())
    assert dualpipe.schedule(path) == schedule
    assert schedule.lower().strip() == schedule
    assert schedule.lower() != schedule


def test_csv(tmp_path: Path) -> None:
    schedule = dualpipe.schedule("dualpipe", ranks=4, microbatches=8)
    assert schedule.to_csv() == sim("convert", "dualpipe", "--ranks", "4", "--microbatches", "8", "--to", "csv")
    path = tmp_path / "schedule.json"
    text = schedule.to_json()
    path.write_text(text.replace('"weights": [0, 1, 2, 3, 0, 1, 2, 3]', '"weights": [0, 1, 2, 3, 4, 5, 6, 7]'))
    other = dualpipe.schedule(path)
    assert other.weights == list(range(8))
    with pytest.raises(dualpipe.InputError, match="a CSV cannot say which chains"):
        other.to_csv()


def test_what_it_is() -> None:
    schedule = dualpipe.schedule("dualpipe", ranks=2, microbatches=4)
    assert repr(schedule) == "dualpipe: 2 ranks, 4 stages, 2 chains, 4 micro-batches"
    assert (schedule.name, schedule.ranks, schedule.stages, schedule.microbatches) == ("dualpipe", 2, 4, 4)
    assert schedule.chains == [[0, 1], [1, 0]]
    assert schedule.weights == [0, 1, 0, 1]
    assert schedule.ops == [row.split(",") for row in schedule.to_csv().splitlines()]
    assert any("OVERLAP_F_B" in op for op in schedule.ops[0])
    assert dualpipe.schedule("interleaved", ranks=2, microbatches=4).remarks == [
        "2 chunks per rank, as chunks does not say how many"
    ]


def test_catalog() -> None:
    assert FAMILIES == [line.split(",")[0] for line in sim("schedules", "--format", "csv").splitlines()[1:]]
    interleaved = next(family for family in dualpipe.catalog() if family.name == "interleaved")
    assert interleaved.takes == ["chunks", "group"]
    assert interleaved.paper and interleaved.rule and interleaved.title


def test_rules_and_deadlocks(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n")
    hangs = dualpipe.schedule(path)
    assert hangs.validate() == []
    cycle = hangs.find_deadlock()
    assert cycle is not None and cycle.splitlines() == sim_error("validate", str(path)).splitlines()[1:]
    with pytest.raises(dualpipe.DeadlockError) as error:
        dualpipe.simulate(hangs)
    assert str(error.value) == sim_error("simulate", str(path))

    path.write_text("0F0,0F0,0B0\n")
    wrong = dualpipe.schedule(path)
    assert len(wrong.validate()) == 1 and "rank 0, op 1, 0F0" in wrong.validate()[0]
    with pytest.raises(dualpipe.InputError) as invalid:
        dualpipe.simulate(path)
    assert str(invalid.value) == sim_error("simulate", str(path))


def test_automatic_schedules_take_costs() -> None:
    limit = {"ranks": 4, "microbatches": 8, "memory_limit": "4microbatches", "latency": "50us"}
    expected = sim("convert", "zb-auto", *options(limit), "--to", "json")
    assert dualpipe.schedule("zb-auto", **limit).to_json() == expected
    assert dualpipe.schedule("zb-auto", ranks=4, microbatches=8, memory_limit="4 microbatches",
                             costs=dualpipe.Costs(latency="50us")).to_json() == expected
    for costs in ({"costs": dualpipe.Costs()}, {"forward": 1}):
        with pytest.raises(dualpipe.InputError, match="does not depend on costs; leave it out, or add memory_limit"):
            dualpipe.schedule("1f1b", ranks=4, microbatches=8, **costs)
    with pytest.raises(dualpipe.MemoryLimitError) as error:
        dualpipe.schedule("gpipe", ranks=4, microbatches=8, memory_limit="4microbatches")
    assert "8" in str(error.value)
