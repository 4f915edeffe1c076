"""The schedule that somebody asks for who has stages."""

from __future__ import annotations

import os

from ._sim import Family, InputError, Schedule, catalog
from ._sim import schedule as load


def schedule_for(
    schedule: str | os.PathLike[str] | Schedule,
    microbatches: int | None,
    *,
    ranks: int,
    stages: int | None = None,
    group: int = 0,
    chains: int | None = None,
) -> Schedule:
    """One of the catalog by its name, with `stages` on each of the `ranks` if it can have them (as many as it has by
    itself, unless given); one that has its own shape, of a file or made before, as it is.

    Raises InputError where there is none, or not of so many micro-batches and ranks.
    """
    if not isinstance(schedule, Schedule):
        name = os.fspath(schedule)
        family = next((each for each in catalog() if each.name == name), None)
        if family is not None:
            if microbatches is None:
                raise InputError(f"how many microbatches schedule {name} is to have is not said")
            shape = {} if stages is None else _shape(family, stages)
            if group:
                shape["group"] = group
            return load(name, ranks=ranks, microbatches=microbatches, chains=chains, **shape)
        schedule = load(name, chains=chains)
    if microbatches not in (None, schedule.microbatches):
        raise InputError(
            f"{schedule.name} is a schedule of {schedule.microbatches} micro-batches, and {microbatches} are asked for"
        )
    if schedule.ranks != ranks:
        raise InputError(
            f"schedule {schedule.name} is one of {schedule.ranks} ranks, and the process group has {ranks}"
        )
    return schedule


def _shape(family: Family, stages: int) -> dict[str, int]:
    per_chain = max(1, stages // 2)
    offered = {"chunks": stages, "waves": per_chain, "replicas": per_chain}
    return {keyword: value for keyword, value in offered.items() if keyword in family.takes}


def default_schedule(ranks: int) -> str:
    """DualPipe, where the number of ranks is even; of one rank there is nothing to overlap."""
    return "1f1b" if ranks == 1 else "dualpipe" if ranks % 2 == 0 else "dualpipev"


def check_stages(schedule: Schedule, rank: int, numbers: list[int], count: int) -> None:
    """`numbers`: of the stages on this rank."""
    if count != len(numbers):
        raise InputError(
            f"schedule {schedule.name} has stages {numbers} on rank {rank}; give a module for each, in this order, and "
            f"not {count}"
        )
