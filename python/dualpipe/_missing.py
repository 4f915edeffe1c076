"""Packages that are needed for a part of this one alone."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def require(package: str, least: tuple[int, int], extra: str, what: str) -> None:
    """Raises ImportError, with the remedy, where `package` is missing, or too old for `what`."""
    remedy = f"pip install dualpipe[{extra}]"
    least_text = ".".join(map(str, least))
    try:
        found = version(package)
    except PackageNotFoundError:
        raise ImportError(f"{what} needs {package} {least_text} or newer, which is not installed: {remedy}") from None
    if tuple(int(each) for each in found.split(".")[:2]) < least:
        raise ImportError(f"{what} needs {package} {least_text} or newer, and {found} is installed: {remedy}")
