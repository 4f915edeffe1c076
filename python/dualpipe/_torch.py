"""The Torch that the executor was built with, and the one that is there."""

from importlib.metadata import PackageNotFoundError, version

from ._build import torch_version


def check() -> None:
    """Raises ImportError, with the remedy, where `dualpipe._exec` is missing, or was built with another Torch.

    Torch's C++ interface is the same within one minor version alone, 2.11 say. Torch itself is not imported.
    """
    again = "pip install --force-reinstall --no-deps, of DualPipe's sources, builds it anew"
    if not torch_version:
        raise ImportError(f"dualpipe was built without PyTorch, and does not train: {again}")
    try:
        found = version("torch")
    except PackageNotFoundError:
        remedy = f"pip install torch=={torch_version}"
        raise ImportError(f"dualpipe trains with PyTorch {torch_version}, which is not installed: {remedy}") from None
    if found.split(".")[:2] != torch_version.split(".")[:2]:
        raise ImportError(f"dualpipe was built with PyTorch {torch_version}, not with {found}: {again}")
