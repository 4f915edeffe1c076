"""Timelines: the figures, pictures and traces of dualpipe-sim simulate, and the arrays behind them."""

import json
from pathlib import Path

import numpy as np
import pytest

import dualpipe
from cli import options, shape, sim

FAMILIES = [family.name for family in dualpipe.catalog()]
COSTS = {
    "forward": "1.5ms", "backward": "3.25ms", "weight": "1.2ms", "activation_bytes": "64MiB",
    "weight_stash_bytes": "16MiB", "parameter_bytes": "1GB", "comm": "links", "latency": "20us", "bandwidth": "50GB/s",
    "bytes": "8MiB",
}


def costs_for(family: str) -> dict[str, object]:
    """Costs of which the schedule has a use for all."""
    found = next(each for each in dualpipe.catalog() if each.name == family)
    costs: dict[str, object] = dict(COSTS)
    if not found.splits_backward:
        del costs["weight_stash_bytes"]
    return costs


@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_the_tools(family: str) -> None:
    keywords = shape(family) | costs_for(family)
    timeline = dualpipe.simulate(family, **keywords)
    printed = json.loads(sim("simulate", family, *options(keywords), "--json", "-"))
    assert timeline.to_dict() == printed
    assert timeline.makespan == printed["makespan_ns"]
    assert timeline.bubble == printed["bubble_rate_makespan"]
    assert timeline.bubble_by_span == printed["bubble_rate_span"]
    ranks = printed["per_rank"]
    assert timeline.busy.tolist() == [rank["busy_ns"] for rank in ranks]
    assert timeline.idle.tolist() == [rank["idle_ns"] for rank in ranks]
    assert timeline.peak_memory.tolist() == [rank["peak_memory_bytes"] for rank in ranks]
    assert timeline.peak_activations.tolist() == [rank["peak_activations"] for rank in ranks]


@pytest.mark.parametrize("family", ["1f1b", "zb1p", "interleaved", "dualpipe", "zbv"])
def test_spans_are_the_trace(family: str, tmp_path: Path) -> None:
    keywords = shape(family) | costs_for(family)
    timeline = dualpipe.simulate(family, **keywords)
    path = tmp_path / "trace.json"
    timeline.write_trace(path)
    by_tool = tmp_path / "tool.json"
    sim("simulate", family, *options(keywords), "--trace", str(by_tool))
    assert path.read_text() == by_tool.read_text()

    events = json.loads(path.read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans: dict[str, tuple[int, int]] = {}
    for event in events:
        if event["ph"] == "X" and lanes[event["tid"]].endswith(" compute"):
            start = round(event["ts"] * 1000)
            spans[event["args"]["op"]] = (start, start + round(event["dur"] * 1000))
    found = {}
    for rank in range(timeline.ranks):
        at = timeline.rank_begin[rank]
        for cell in timeline.schedule.ops[rank]:
            found[cell] = tuple(timeline.spans[at].tolist())
            at += 2 if cell.startswith("(") else 1
        assert at == timeline.rank_begin[rank + 1]
    assert found == spans


def test_views() -> None:
    timeline = dualpipe.simulate("dualpipe", ranks=4, microbatches=8)
    assert timeline.spans.shape == (len(timeline.ops), 2) and timeline.spans.dtype == np.int64
    assert np.shares_memory(timeline.spans, timeline.spans)
    assert not timeline.spans.flags.writeable
    assert [f"{stage}" for stage in timeline.stage] == [op.rstrip("0123456789")[:-1] for op in timeline.ops]
    assert [op.endswith(str(m)) for op, m in zip(timeline.ops, timeline.micro_batch)].count(False) == 0
    assert (timeline.last_end - timeline.first_start).max() == timeline.span
    spans = timeline.spans
    del timeline  # the array keeps what it looks at
    assert spans[:, 1].max() == spans.max() and spans.min() == 0


def test_messages() -> None:
    timeline = dualpipe.simulate("1f1b", ranks=2, microbatches=2, latency="1ms")
    assert timeline.messages.shape == (8, 2)  # two activations, two gradients, at both ends
    assert set((timeline.messages[:, 1] - timeline.messages[:, 0]).tolist()) == {1_000_000}


def test_memory() -> None:
    timeline = dualpipe.simulate("1f1b", ranks=4, microbatches=8, activation_bytes="1MiB", parameter_bytes=1000)
    for rank in range(4):
        times, held, alive = timeline.memory(rank)
        assert held.max() == timeline.peak_memory[rank] == (4 - rank) * 2**20 + 1000
        assert alive.max() == timeline.peak_activations[rank] == 4 - rank
        assert (np.diff(times) >= 0).all()
    with pytest.raises(IndexError, match="there is no rank 4: 0 to 3"):
        timeline.memory(4)


def test_pictures_are_the_tools(tmp_path: Path) -> None:
    keywords = {"ranks": 4, "microbatches": 8}
    timeline = dualpipe.simulate("dualpipe", **keywords)
    for arguments, picture in (
        ([], timeline.svg()),
        ([], timeline._repr_svg_()),
        (["--svg-memory", "--title", "a", "--window", "0", "5ms"],
         timeline.svg(title="a", memory=True, window=(0, "5ms"))),
    ):
        path = tmp_path / "picture.svg"
        sim("simulate", "dualpipe", *options(keywords), "--svg", str(path), *arguments)
        assert picture == path.read_text()
    chart = tmp_path / "chart.txt"
    sim("simulate", "dualpipe", *options(keywords), "--gantt", str(chart))
    assert timeline.gantt() == chart.read_text()
    assert timeline.text() == sim("simulate", "dualpipe", *options(keywords))


def test_parts_of_a_trace(tmp_path: Path) -> None:
    timeline = dualpipe.simulate("1f1b", ranks=4, microbatches=8)
    path = tmp_path / "trace.json"
    timeline.write_trace(path, ranks=(1, 2), window=("2ms", 5))
    by_tool = tmp_path / "tool.json"
    sim("simulate", "1f1b", "-p", "4", "-m", "8", "--trace", str(by_tool), "--trace-ranks", "1", "2", "--trace-window",
        "2ms", "5")
    assert path.read_text() == by_tool.read_text()


def test_pandas() -> None:
    timeline = dualpipe.simulate("1f1b", ranks=2, microbatches=2)
    frame = timeline.to_pandas()
    assert list(frame.columns) == ["rank", "op", "kind", "stage", "micro_batch", "start_ns", "end_ns"]
    assert frame.op.tolist() == timeline.ops
    durations = frame.end_ns - frame.start_ns
    assert durations.groupby(frame["rank"]).sum().tolist() == timeline.busy.tolist()


def test_profile() -> None:
    timeline = dualpipe.simulate("zb1p", ranks=2, microbatches=4, latency="0.1ms")
    assert timeline.profile() == sim("explain", "zb1p", "-p", "2", "-m", "4", "--latency", "0.1ms", "--no-what-if")


def test_compare(tmp_path: Path) -> None:
    first = dualpipe.simulate("1f1b", ranks=4, microbatches=8)
    second = dualpipe.simulate("zb1p", ranks=4, microbatches=8)
    printed = json.loads(sim("compare", "1f1b", "zb1p", "-p", "4", "-m", "8", "--json", "-"))
    assert first.compare(second).to_dict() == printed
    assert str(first.compare(second)) == sim("compare", "1f1b", "zb1p", "-p", "4", "-m", "8")
    slower = dualpipe.simulate("1f1b", ranks=4, microbatches=8, forward="2ms")
    of_costs = first.compare(slower).to_dict()
    assert (of_costs["planned"], of_costs["measured"]) == ("A", "B")
    assert (of_costs["planned_makespan_ns"], of_costs["measured_makespan_ns"]) == (first.makespan, slower.makespan)
    with pytest.raises(dualpipe.InputError, match="only what runs on the same ranks can be compared"):
        first.compare(dualpipe.simulate("1f1b", ranks=2, microbatches=8))


def test_costs(tmp_path: Path) -> None:
    costs = dualpipe.Costs(forward=[1, 2.5, "850us", 1e-3], latency="20us", comm="links")
    assert len(costs) == 4 and not costs.is_of_model
    assert [stage["forward_ns"] for stage in costs.to_dict()["stages"]] == [1_000_000, 2_500_000, 850_000, 1000]
    path = tmp_path / "costs.json"
    costs.save(path)
    again = dualpipe.Costs(path)
    assert again == costs and again.to_json() == path.read_text()
    assert dualpipe.Costs(path, latency="40us") != costs
    shape = {"ranks": 4, "microbatches": 8}
    results = [
        dualpipe.simulate("1f1b", **shape, costs=costs),
        dualpipe.simulate("1f1b", **shape, costs=path),
        dualpipe.simulate(dualpipe.schedule("1f1b", **shape), costs=str(path)),
        dualpipe.simulate("1f1b", **shape, forward="1,2.5,850us,0.001", latency="20us", comm="links"),
        dualpipe.simulate("1f1b", **shape, forward=np.array([1, 2.5, 0.85, 0.001]), latency=np.float32(0.02),
                          comm="links"),
    ]
    assert len({result.to_json() for result in results}) == 1
    assert results[0].costs == costs
