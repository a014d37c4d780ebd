"""The command `pl-prefopt demo`, which is also `python -m pl_prefopt.demo`: small runs that need nothing else.

pl-prefopt demo                                      # what there is
pl-prefopt demo text-dpo --model.objective IPO       # run one; what follows its name goes to `pl-prefopt fit`
pl-prefopt demo pareto                               # several weights of two objectives, drawn as one front
pl-prefopt demo make-base image                      # make one of the pre-trained models again that demos begin with
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pl_prefopt.demo.listing import Demo, config_path, listing
from pl_prefopt.utilities.suggestions import did_you_mean

PARETO, MAKE_BASE = "pareto", "make-base"
COMMANDS = (
    Demo(PARETO, "MODPO's front over weights, PAMA, and both objectives alone, as one figure", "5"),
    Demo(MAKE_BASE, "Make one of the pre-trained models again that the demos begin with", ""),
)
"""What can be run besides the configurations."""


def main(args: list[str] | None = None) -> None:
    """List the demos, or run one.

    Args:
        args: name of a demo and further arguments; None reads the process's own.

    Raises:
        SystemExit: there is no such demo.
    """
    name, *rest = (sys.argv[1:] if args is None else args) or [""]
    if name in ("", "-h", "--help"):
        print_listing()
    else:
        run(name, rest)


def run(name: str, args: list[str]) -> None:
    """Run a demo.

    Args:
        name: of a configuration in configs/demo, "pareto" or "make-base".
        args: for a configuration further arguments of `pl-prefopt fit`, else those of the command.

    Raises:
        SystemExit: there is no such demo.
    """
    demos = {demo.name for demo in (*listing(), *COMMANDS)}
    if name not in demos:
        near = did_you_mean(name, demos)
        sys.exit(f"pl-prefopt demo: error: the demo must be one of {', '.join(sorted(demos))}, got {name!r}. {near}")
    if name == PARETO:
        from pl_prefopt.demo.text import pareto

        pareto.main(args)
    elif name == MAKE_BASE:
        make_base(args)
    else:
        from pl_prefopt import cli

        cli.main(["fit", "--config", str(config_path(name)), *args])


def make_base(args: list[str]) -> None:
    """Make a base again and print what was measured on it."""
    from pl_prefopt.demo.bases import FOLDER, maker, names

    parser = argparse.ArgumentParser(prog="pl-prefopt demo make-base", description=make_base.__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--out", type=Path, help="folder to replace; by default the one in the package")
    chosen = parser.parse_args(args)
    record = maker(chosen.name).make_base(chosen.name, chosen.out)
    print(f"{chosen.out or FOLDER / chosen.name}: {record.minutes} minutes, {record.measured}")


def print_listing() -> None:
    """Print name, minutes and title of every demo."""
    from rich.console import Console
    from rich.table import Table

    table = Table("demo", "minutes", "what it shows", title="pl-prefopt demo NAME", title_justify="left")
    for demo in (*listing(), *COMMANDS):
        table.add_row(demo.name, demo.minutes, demo.title)
    Console().print(table)


if __name__ == "__main__":
    main()
