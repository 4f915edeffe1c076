"""Pipeline-parallel schedules: generated, validated, simulated, and run with PyTorch.

    import dualpipe

    dualpipe.table(ranks=8, microbatches=20)
    timeline = dualpipe.simulate("dualpipe", ranks=8, microbatches=20, overlapped="2.5ms")
    timeline.write_trace("trace.json")
"""

from ._build import version as __version__
from ._sim import (
    Comparison,
    Costs,
    DeadlockError,
    Family,
    InputError,
    MemoryLimitError,
    Schedule,
    ShapeError,
    Table,
    Timeline,
    catalog,
    schedule,
    simulate,
    table,
)

__all__ = [
    "Comparison",
    "Costs",
    "DeadlockError",
    "Family",
    "InputError",
    "MemoryLimitError",
    "Schedule",
    "ShapeError",
    "Table",
    "Timeline",
    "catalog",
    "schedule",
    "simulate",
    "table",
]
