"""Errors: the texts of the command line, with Python's names."""

import pytest

import dualpipe
from cli import sim_error

SHAPE = {"ranks": 4, "microbatches": 8}


def test_types() -> None:
    assert issubclass(dualpipe.InputError, ValueError)
    assert issubclass(dualpipe.ShapeError, dualpipe.InputError)
    assert issubclass(dualpipe.MemoryLimitError, dualpipe.InputError)
    assert issubclass(dualpipe.DeadlockError, RuntimeError)


@pytest.mark.parametrize("keywords, text", [
    ({"source": "1f1p", **SHAPE}, "did you mean 1f1b?"),
    ({"source": "1f1b"}, "give ranks and microbatches"),
    ({"source": "1f1b", "ranks": 0, "microbatches": 8}, "ranks: "),
    ({"source": "1f1b", **SHAPE, "chunks": 2}, "chunks: the number of chunks cannot be chosen in 1f1b"),
    ({"source": "1f1b", **SHAPE, "forward": "1 mile"}, "forward: "),
    ({"source": "1f1b", **SHAPE, "forward": ""}, "forward: the value is empty"),
    ({"source": "1f1b", **SHAPE, "forward": []}, "forward: the list is empty"),
    ({"source": "1f1b", **SHAPE, "forward": [1, 2], "backward": [3, 4, 5]}, "backward: 3 values"),
    ({"source": "1f1b", **SHAPE, "forward": float("nan")}, "forward: "),
    ({"source": "1f1b", **SHAPE, "forward": -1}, "forward: "),
    ({"source": "1f1b", **SHAPE, "comm": "link"}, "comm: it is one of latency, links, stream, and not 'link'"),
    ({"source": "1f1b", **SHAPE, "bandwidth": "50GB/s"}, 'comm="latency"; add comm="links" or comm="stream"'),
    ({"source": "1f1b", **SHAPE, "overlapped": "2ms"}, "overlapped: nothing that runs has F&B pairs"),
    ({"source": "1f1b", **SHAPE, "seed": 1}, "seed: nothing is drawn; add jitter"),
    ({"source": "1f1b", **SHAPE, "costs": "no.json"}, "no.json"),
    ({"source": "1f1b", **SHAPE, "costs": "no.json", "forward": 1}, "costs excludes forward"),
    ({"source": "1f1b", **SHAPE, "costs": dualpipe.Costs(), "forward": 1}, "give forward to Costs"),
    ({"source": "./no.csv"}, "no.csv"),
    ({"source": dualpipe.schedule("1f1b", **SHAPE), "ranks": 4}, "leave out ranks, microbatches and the like"),
    ({"source": "1f1b", **SHAPE, "letters": "old"}, "letters: it is for CSV files"),
])
def test_input_errors(keywords: dict[str, object], text: str) -> None:
    with pytest.raises(dualpipe.InputError) as error:
        dualpipe.simulate(**keywords)
    assert text in str(error.value)
    assert "--" not in str(error.value)


def test_text_is_the_tools() -> None:
    with pytest.raises(dualpipe.ShapeError) as error:
        dualpipe.simulate("dualpipe", ranks=3, microbatches=8)
    assert str(error.value) == sim_error("simulate", "dualpipe", "--ranks", "3", "--microbatches", "8")


def test_type_errors() -> None:
    with pytest.raises(TypeError, match="there is no keyword microbatch; did you mean microbatches?"):
        dualpipe.simulate("1f1b", ranks=4, microbatch=8)
    with pytest.raises(TypeError, match="forward: it is a number, or a text with its unit, and not a bool"):
        dualpipe.simulate("1f1b", **SHAPE, forward=True)
    with pytest.raises(TypeError, match="latency: it is .* and not a object"):
        dualpipe.simulate("1f1b", **SHAPE, latency=object())
    with pytest.raises(TypeError):
        dualpipe.simulate(7, **SHAPE)


def test_remedies_that_are_commands_stay(tmp_path: object) -> None:
    with pytest.raises(dualpipe.InputError, match=r"dualpipe-sim schedules|1f1b"):
        dualpipe.schedule("nothing-like-it", **SHAPE)
