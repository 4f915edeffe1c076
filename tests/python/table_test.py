"""Tables: what dualpipe-sim table prints."""

import json
from pathlib import Path

import pytest

import dualpipe
from cli import options, sim

CASES = [
    {},
    {"ranks": [4, 8], "microbatches": 16, "sort": "bubble"},
    {"equal": "stages"},
    {"schedules": ["1f1b", "zb1p", "dualpipe"], "activation_bytes": "1GB", "memory_limit": "10GB", "tokens": 4096},
    {"jitter": 0.05, "seeds": 10, "seed": 3, "schedules": "1f1b,zb1p", "flops": [1.2e15, 989e12]},
]


@pytest.mark.parametrize("keywords", CASES)
def test_is_the_tools(keywords: dict[str, object]) -> None:
    table = dualpipe.table(**keywords)
    given = options(keywords)
    assert table.text() == sim("table", *given)
    assert table.to_csv() == sim("table", *given, "--format", "csv")
    assert table.to_markdown() == sim("table", *given, "--format", "markdown")
    assert table.to_dict() == json.loads(sim("table", *given, "--format", "json"))


def test_rows() -> None:
    table = dualpipe.table(ranks=4, microbatches=8, schedules=["1f1b", "zb1p"])
    assert len(table) == 2
    assert [row["schedule"] for row in table] == ["zb1p", "1f1b"]
    assert table.rows[0]["makespan_ns"] == dualpipe.simulate("zb1p", ranks=4, microbatches=8).makespan
    frame = table.to_pandas()
    assert frame.schedule.tolist() == ["zb1p", "1f1b"]
    assert frame.closed_form_formula.tolist() == ["(P-1)(F+B-2W)", "(P-1)(F+B)"]


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dualpipe.table(ranks=4, microbatches=8, schedules=["1f1b", "zb1p"])
    assert "<td style=\"text-align: left\">zb1p</td>" in table._repr_html_()
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, repr(table).splitlines())) <= 80
    assert repr(table) == table.text(60)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(dualpipe.schedule("1f1b", ranks=4, microbatches=8).to_csv())
    table = dualpipe.table(ranks=4, microbatches=8, schedules=["1f1b", path])
    assert [row["makespan_ns"] for row in table] == [table.rows[0]["makespan_ns"]] * 2
