"""Which Torch the executor takes: the one that it was built with, but for the patch."""

import importlib.metadata

import pytest

from dualpipe import _torch


def check(monkeypatch: pytest.MonkeyPatch, built: str, found: str | None) -> str:
    """What is wrong; "" for nothing."""

    def version(name: str) -> str:
        assert name == "torch"
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(_torch, "torch_version", built)
    monkeypatch.setattr(_torch, "version", version)
    try:
        _torch.check()
    except ImportError as error:
        return str(error)
    return ""


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(monkeypatch, "2.11.0", "2.11.0") == ""
    assert check(monkeypatch, "2.11.0", "2.11.1+cu130") == ""
    again = "pip install --force-reinstall --no-deps, of DualPipe's sources, builds it anew"
    assert check(monkeypatch, "2.11.0", "2.12.0") == f"dualpipe was built with PyTorch 2.11.0, not with 2.12.0: {again}"
    assert check(monkeypatch, "2.11.0", "2.1.0").startswith("dualpipe was built with PyTorch 2.11.0, not with 2.1.0")
    assert check(monkeypatch, "2.11.0", None).endswith("which is not installed: pip install torch==2.11.0")
    assert check(monkeypatch, "", "2.11.0") == f"dualpipe was built without PyTorch, and does not train: {again}"
