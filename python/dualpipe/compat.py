"""Classes for Lightning and Hugging Face under the names that scripts for DualPipe know them by."""

from __future__ import annotations

from importlib import import_module

_CLASSES = {"DualPipeLightningModule": "_compat_lightning", "DualPipeTrainer": "_compat_trainer"}

__all__ = ["DualPipeLightningModule", "DualPipeTrainer"]


def __getattr__(name: str) -> object:
    """Each needs a package that the other one does not."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_CLASSES[name]}", __package__), name)
