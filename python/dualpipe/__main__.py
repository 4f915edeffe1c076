"""`python -m dualpipe` is dualpipe-sim."""

import os
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def tool(name: str) -> Path:
    """Where a command line tool of this package is installed.

    Raises FileNotFoundError where it is not.
    """
    try:
        installed = [Path(file.locate()) for file in files("dualpipe") or [] if file.name == name]
    except PackageNotFoundError:
        installed = []
    # In a build folder, and where pip has moved it (pip install --target).
    package = Path(__file__).absolute().parent
    for path in [*installed, package.parent.parent / "bin" / name, package.parent / "bin" / name]:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is not installed beside the package dualpipe")


def main() -> None:
    path = tool("dualpipe-sim")
    os.execv(path, [str(path), *sys.argv[1:]])


if __name__ == "__main__":
    main()
