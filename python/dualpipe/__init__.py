"""Pipeline-parallel schedules: generated, validated, simulated, and run with PyTorch.

    import dualpipe

    dualpipe.table(ranks=8, microbatches=20)
    timeline = dualpipe.simulate("dualpipe", ranks=8, microbatches=20, overlapped="2.5ms")
    timeline.write_trace("trace.json")
"""

from importlib import import_module
from importlib.util import find_spec

from ._build import version as __version__
from ._sim import (
    Comparison,
    Costs,
    DeadlockError,
    Family,
    Grid,
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
from ._sweep import Sweep, sweep

__all__ = [
    "Comparison",
    "Costs",
    "DeadlockError",
    "Family",
    "Grid",
    "InputError",
    "MemoryLimitError",
    "Schedule",
    "ShapeError",
    "Sweep",
    "Table",
    "Timeline",
    "catalog",
    "schedule",
    "simulate",
    "sweep",
    "table",
]

# What needs PyTorch, which is imported with it; by the module that has it.
_TRAINING = {
    "DualPipe": "deepseek",
    "DualPipeV": "deepseek",
    "ModelPipeline": "model_pipeline",
    "Pipeline": "pipeline",
    "ReplayError": "_exec",
    "Split": "splitting",
    "TransportError": "_exec",
    "WeightGradStore": "utils",
    "profile": "profiler",
    "split": "splitting",
    "set_p2p_tensor_dtype": "deepseek",
    "set_p2p_tensor_shapes": "deepseek",
}

# Modules that need PyTorch, and what else they say.
_MODULES = ("adapters", "compat", "lightning", "transformers", "utils")


def _trains() -> bool:
    from . import _torch

    try:
        _torch.check()
    except ImportError:
        return False
    return True


if _trains():
    __all__ = sorted([*__all__, *_TRAINING])
if find_spec("torch") is not None:
    __all__ = sorted([*__all__, "pytorch_schedule"])


def __getattr__(name: str) -> object:
    if name == "pytorch_schedule":  # of any PyTorch
        if find_spec("torch") is None:
            raise ImportError("dualpipe.pytorch_schedule() makes PyTorch's own runtime: pip install torch")
        return import_module(".pytorch", __name__).pytorch_schedule
    if name not in _TRAINING and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _torch

    _torch.check()
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    return getattr(import_module(f".{_TRAINING[name]}", __name__), name)
