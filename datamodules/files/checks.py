"""Errors that say where, what was found, what is accepted and what to do next; and value checks that raise them."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any


class BadRow(ValueError):
    """A row that cannot be used. `reason` is the short name under which dropped rows are counted.

    Args:
        reason: key of the count, for example "empty_completion".
        field: the column, or the path inside it.
        found: what stands there.
        accepted: what may stand there.
        hint: the next step.
    """

    def __init__(self, reason: str, field: str, found: str, accepted: str, hint: str = "") -> None:
        self.reason, self.field, self.found, self.accepted, self.hint = reason, field, found, accepted, hint
        super().__init__(self.text("row"))

    def text(self, where: str) -> str:
        """Return the message for a row at `where` (file and row)."""
        tail = f" {self.hint}" if self.hint else ""
        return f"{where}: field {self.field!r}: found {self.found}; accepted: {self.accepted}.{tail}"

    def at(self, where: str) -> ValueError:
        """Return a ValueError that also names file and row."""
        return ValueError(self.text(where))


def shown(value: Any, limit: int = 60) -> str:
    """Return `repr(value)`, cut in the middle."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 12]}...{text[-9:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def one_of(argument: str, value: Any, accepted: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `accepted`."""
    options = list(accepted)
    if value not in options:
        names = ", ".join(map(repr, options))
        raise ValueError(
            f"{argument}: found {value!r}; accepted: {names}. {nearest(str(value), map(str, options))}".strip()
        )


def positive(argument: str, value: Any, *, none: bool = False) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1 (or None, where `none`)."""
    if (value is None and none) or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return
    raise ValueError(f"{argument}: found {value!r}; accepted: a whole number >= 1{' or null' if none else ''}.")


def number(field: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float within [low, high], else raise `BadRow`."""
    accepted = "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]"
    if high == math.inf and low > -math.inf:
        accepted = f"a finite number >= {low:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow("bad_number", field, shown(value), accepted)
    if not math.isfinite(value) or not low <= value <= high:
        raise BadRow("bad_number", field, repr(value), accepted, "Repair or remove the row.")
    return float(value)


def inside(folder: str | Path, path: str) -> Path:
    """Return `folder / path`, refusing paths in data files that lead out of the data folder (links included).

    Raises:
        BadRow: the path is absolute, climbs out with "..", or is a link to the outside.
    """
    root = resolved(folder)
    parent, name = os.path.split(root / path)
    full = resolved(parent) / name
    full = full.resolve() if name == os.pardir or full.is_symlink() else full
    if Path(path).is_absolute() or not full.is_relative_to(root):
        raise BadRow("outside_path", "path", repr(path), "a relative path inside the data folder")
    return full


def resolved(folder: str | Path) -> Path:
    """Return a folder without links, looked up once: data files name the same folders in every row."""
    climbs = os.pardir in Path(folder).parts  # after a link, "x/.." need not be where it seems
    return Path(folder).resolve() if climbs else _resolved(os.path.abspath(folder))


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()
