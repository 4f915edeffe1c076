"""Pipeline-parallel schedules: generated, validated, simulated, and run with PyTorch."""

from ._build import version as __version__
from ._sim import InputError, names

__all__ = ["InputError", "__version__", "names"]
