"""Where a row of units is cut so that the largest part is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from ._recording import Recording
from ._sim import InputError


def unit_costs(
    balance: str | Sequence[float],
    units: Sequence[str],
    recording: Recording,
    sizes: Mapping[str, int],
    seconds: Callable[[], list[float]],
) -> list[float]:
    """What the units cost, in any measure, the same one on all processes, which have to come to the same cuts."""
    if not isinstance(balance, str):
        costs = [float(each) for each in balance]
        if len(costs) != len(units) or min(costs) < 0:
            raise InputError(
                f"balance has to be a cost of each of the {len(units)} units, none of them below 0: {', '.join(units)}"
            )
        return costs
    if balance == "parameters":
        return [float(sizes[each]) for each in units]
    if balance == "flops":
        return [float(recording.calls[each][0].flops) for each in units]
    if balance == "time":
        return seconds()
    raise InputError(f'balance="{balance}": "flops", "parameters", "time", or a list with a cost for each unit')


def balanced(costs: Sequence[float], parts: int, allowed: Sequence[int]) -> list[int] | None:
    """Where each part but the first begins. The largest of the parts is as small as it can be, and then the sum of
    their squares; what costs nothing, an activation, stays with what is before it. `allowed`: where one may. None:
    these are too few."""
    begins = [0, *allowed, len(costs)]
    sums = [0.0]
    for each in costs:
        sums.append(sums[-1] + each)

    @lru_cache(None)
    def best(begin: int, left: int) -> tuple[float, float, tuple[int, ...]] | None:
        if left == 1:
            whole = sums[-1] - sums[begins[begin]]
            return whole, whole * whole, ()
        found = None
        for end in range(begin + 1, len(begins) - left + 1):
            rest = best(end, left - 1)
            if rest is None:
                continue
            own = sums[begins[end]] - sums[begins[begin]]
            made = (max(own, rest[0]), own * own + rest[1], (-begins[end], *rest[2]))
            if found is None or made < found:
                found = made
        return found

    if len(allowed) < parts - 1:
        return None
    result = best(0, parts)
    return None if result is None else [-each for each in result[2]]
