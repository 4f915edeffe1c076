"""What dualpipe-sim prints, which Python is compared with."""

import os
import subprocess


# A terminal's width would leave columns out.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "COLUMNS"}


def sim(*arguments: str) -> str:
    """The standard output of dualpipe-sim."""
    done = subprocess.run([os.environ["DUALPIPE_SIM"], *arguments], check=True, capture_output=True, text=True,
                          env=ENVIRONMENT)
    return done.stdout


def sim_error(*arguments: str) -> str:
    """Its error, without "error: "."""
    done = subprocess.run([os.environ["DUALPIPE_SIM"], *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0
    return done.stderr.removeprefix("error: ").rstrip("\n")


def shape(family: str) -> dict[str, int]:
    """A shape that every schedule of the catalog has, with all that it takes."""
    import dualpipe

    takes = next(each.takes for each in dualpipe.catalog() if each.name == family)
    values = {"chunks": 2, "group": 4, "waves": 2, "replicas": 1}
    return {"ranks": 4, "microbatches": 8} | {name: values[name] for name in takes}


def options(keywords: dict[str, object]) -> list[str]:
    """Keywords of Python as options of the command line."""
    arguments = []
    for name, value in keywords.items():
        arguments.append("--" + name.replace("_", "-"))
        if isinstance(value, (list, tuple)):
            arguments.append(",".join(map(str, value)))
        elif value is not True:
            arguments.append(str(value))
    return arguments
