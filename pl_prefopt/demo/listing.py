"""The demo configurations, which the package carries with it: where they lie and what each one shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""configs/demo of the repository: a link to it in a checkout, its copy in an installed package."""


@dataclass(frozen=True)
class Demo:
    """One demo.

    Args:
        name: what the command line calls it.
        title: what it shows, in one sentence.
        minutes: how long it takes on one core, as its configuration says; "" where that says nothing.
    """

    name: str
    title: str
    minutes: str


def names() -> list[str]:
    """Names of the demo configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config_path(name: str) -> Path:
    """Return the file of a demo's configuration.

    Raises:
        ValueError: there is no such demo.
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"the demo must be one of {', '.join(names())}, got {name!r}")
    return path


def listing() -> list[Demo]:
    """All demos, read from the comments that their configurations begin with."""
    demos = []
    for name in names():
        text = config_path(name).read_text(encoding="utf-8")
        comment = " ".join(line.removeprefix("#").strip() for line in text.split("\nseed_everything")[0].splitlines())
        minutes = re.search(r"([\d.]+) minutes? on one core", comment)
        demos.append(Demo(name, re.split(r"\. ", comment)[0], minutes[1] if minutes else ""))
    return demos
