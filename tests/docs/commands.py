#!/usr/bin/env python3
"""Runs the commands of a page of the documentation, and compares what they print with what the page shows.

    tests/docs/commands.py docs/costs.md --path build/release/bin [--with run] [--with mpi]

A block ```console holds commands, each after "$ ", and below each what it prints. Nothing below it: anything may be
printed. A line "…" stands for any lines, "…" in a line for any text. A command that goes on in the next line ends with
a backslash. What else the block needs stands behind its language: ```console run, or mpi. A block ```json costs.json
(of any language) is a file that the commands find in their folder, which is empty otherwise and the same for the page.

Exit status: 0 all is as shown, 1 not so, 77 nothing on the page can be run here.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE = re.compile(r"^```(\S*)[ ]*(.*)$")


def blocks(text):
    """(line number, language, [word after it], [line]) of each fenced block."""
    found, current = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = FENCE.match(line)
        if current is None and fence:
            current = (number, fence[1], fence[2].split(), [])
        elif current is not None and line == "```":
            found.append(current)
            current = None
        elif current is not None:
            current[3].append(line)
    if current is not None:
        raise ValueError(f"line {current[0]}: a block that does not end")
    return found


def commands(first_line, lines):
    """(line number, command, [line of output]) of each command of a block."""
    found = []
    continues = False
    for number, line in enumerate(lines, start=first_line + 1):
        if continues:
            found[-1][1] += "\n" + line
            continues = line.endswith("\\")
        elif line.startswith("$ "):
            found.append([number, line[2:], []])
            continues = line.endswith("\\")
        elif found:
            found[-1][2].append(line)
        else:
            raise ValueError(f"line {number}: no command before its output")
    return found


def pattern(expected):
    """A regular expression for the lines of an output."""
    parts = []
    for line in expected:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(text) for text in line.rstrip().split("…")) + r"[ ]*\n")
    return re.compile("".join(parts))


def run(page, number, command, expected, folder, environment):
    """What is wrong with a command, or None."""
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, text=True,
                            encoding="utf-8", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    # A page shows a failing command with its error.
    shows_error = any(line.startswith("error:") for line in expected)
    if (result.returncode != 0) != shows_error:
        return f"{page}:{number}: exit status {result.returncode}: {command}\n{result.stdout}"
    if expected and not pattern(expected).fullmatch(result.stdout):
        return f"{page}:{number}: {command}\nprints\n{result.stdout}\nand not\n" + "\n".join(expected)
    return None


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("page", type=Path)
    arguments.add_argument("--path", type=Path, required=True, help="the folder of the tools")
    arguments.add_argument("--with", dest="there", action="append", default=[], help="run, mpi: what can be run")
    options = arguments.parse_args()
    environment = dict(os.environ, PATH=f"{options.path.resolve()}:{os.environ['PATH']}", COLUMNS="120",
                       LC_ALL="C.UTF-8")

    ran, faults = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for first_line, language, words, lines in blocks(options.page.read_text(encoding="utf-8")):
            if language != "console":
                if words:
                    (Path(folder) / words[0]).write_text("\n".join(lines) + "\n", encoding="utf-8")
            elif all(word in options.there for word in words):
                for number, command, expected in commands(first_line, lines):
                    ran += 1
                    faults.append(run(options.page.name, number, command, expected, folder, environment))
    faults = [fault for fault in faults if fault]
    print("\n\n".join(faults + [f"{options.page.name}: {ran} commands, {len(faults)} of them wrong"]))
    if faults:
        return 1
    return 0 if ran else 77


sys.exit(main())
