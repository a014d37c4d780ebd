"""Columns of rows: other names for them, and the numbers that `pl_prefopt.scores.COLUMNS` lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pl_prefopt.datamodules.files.readers import Row
from pl_prefopt.scores import COLUMNS
from pl_prefopt.utilities.rows import DROP_HINT, BadRow, abbreviate, missing_column, number

Numbers = dict[str, Any]
"""Column -> a number per row, a list of K numbers, or (margins) K lists of M numbers."""

SCORE_OF_SIDE = re.compile("score|rating|reward|rank")
"""What is in the names of columns that say how good the chosen or the rejected sample is."""


def per(kind: str) -> tuple[str, ...]:
    """Return the data columns that hold one value per "row", "sample" or "token"."""
    return tuple(name for name, column in COLUMNS.items() if column.per == kind)


def renamed(raw: Row, columns: Mapping[str, str]) -> Row:
    """Return the row with our names beside the file's; `columns` maps ours to theirs.

    Raises:
        BadRow: the file has no such column.
    """
    row = dict(raw)
    for ours, theirs in columns.items():
        if theirs not in raw:
            raise missing_column(theirs, raw, accepted=f"the column that columns.{ours} names")
        row[ours] = raw[theirs]
    return row


def parsed(value: object) -> Any:
    """Read a number, or a list of numbers, that a CSV cell holds as text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def read_numbers(row: Row, count: int, item: str, skip: Iterable[str] = ()) -> Numbers:
    """Return the data columns of a row of `count` samples, checked against their ranges.

    `chosen_margins` and `rejected_margins` are read as `margins`, `rewards` as `relevance`.

    Args:
        row: the row.
        count: samples of the row, K.
        item: what a sample is called in errors, for example "completion".
        skip: columns that mean something else in this layout.

    Raises:
        BadRow: a value is no number, out of range, or one of a list of another length than K.
    """
    row = {name: row.get(name) for name in (*COLUMNS, "rewards", "chosen_margins", "rejected_margins")}
    if row["relevance"] is None:
        row["relevance"] = row["rewards"]
    if row["chosen_margins"] is not None or row["rejected_margins"] is not None:
        row["margins"] = [row["chosen_margins"], row["rejected_margins"]]
    numbers: Numbers = {}
    for name, column in COLUMNS.items():
        value = parsed(row[name])
        if value is None or name in skip:
            continue
        if column.per == "token":
            # The weights would have to follow the tokens through the chat template, EOS and truncation.
            hint = "A datamodule or callback may add the column to batches as (B, K, T)."
            raise BadRow("token_column", name, "one", "absent, since values per token cannot be read from files", hint)
        if column.per == "row":
            numbers[name] = number(name, value, low=column.low, high=column.high)
        elif name == "margins":
            numbers[name] = _margins([parsed(v) for v in _sized(value, name, count, item)], count)
        else:
            values = enumerate(_sized(value, name, count, item))
            numbers[name] = [number(f"{name}[{i}]", v, low=column.low, high=column.high) for i, v in values]
    return numbers


def refuse_reversed(row: Row) -> None:
    """Refuse a pair whose own scores say that the rejected sample is the better one.

    Compared are columns such as `score_chosen` and `score_rejected`, or a list `scores` of two.

    Raises:
        BadRow: the score of the rejected sample is higher.
    """
    for name in row:
        other = name.replace("chosen", "rejected")
        if other == name or other not in row or not SCORE_OF_SIDE.search(name):
            continue
        chosen, rejected = parsed(row[name]), parsed(row[other])
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (chosen, rejected)):
            sign = -1 if "rank" in name else 1  # the first rank is the best
            if sign * chosen < sign * rejected:
                found = f"{abbreviate(chosen)}, beside {other!r} {abbreviate(rejected)}"
                raise BadRow("reversed_scores", name, found, f"not worse than {other!r}", DROP_HINT)
    scores = parsed(row.get("scores"))
    if isinstance(scores, list) and len(scores) == 2:
        chosen, rejected = (number(f"scores[{i}]", score) for i, score in enumerate(scores))
        if chosen < rejected:
            raise BadRow("reversed_scores", "scores", abbreviate(scores), "highest for chosen, its first", DROP_HINT)


def _sized(values: object, name: str, count: int, item: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise BadRow("bad_length", name, abbreviate(values), f"a list of {count} numbers, one per {item}")
    return values


def _margins(values: list[Any], count: int) -> list[list[float]]:
    rows = [value if isinstance(value, list) else [value] for value in values]
    if len({len(row) for row in rows}) != 1:
        raise BadRow("bad_length", "margins", abbreviate(values), f"{count} lists of the same number of margins")
    return [[number(f"margins[{i}][{j}]", v) for j, v in enumerate(row)] for i, row in enumerate(rows)]


class SameColumns:
    """Requires that all rows have the same numeric columns, of the same number of margins."""

    def __init__(self) -> None:
        self._first: dict[str, int] | None = None
        self._weights: list[float] = []  # at most one: the first that is not 0, else the first

    def __call__(self, numbers: Numbers) -> None:
        """Compare with the first row.

        Raises:
            BadRow: a column that only one of the two has, or another number of margins.
        """
        widths = {name: len(value[0]) if name == "margins" else 0 for name, value in numbers.items()}
        if self._first is None:
            self._first = widths
        differing = widths.items() ^ self._first.items()
        if differing:
            name = min(name for name, _ in differing)
            raise BadRow("ragged_column", name, "it in some rows only, or of another size", "alike in all rows")
        if "weight" in numbers and not any(self._weights):
            self._weights = [numbers["weight"]]

    def check_weights(self, name: str) -> None:
        """Raise ValueError if the weights of all rows of the file `name` are 0, so that nothing would be trained."""
        if self._weights == [0.0]:
            raise ValueError(f"{name}: column 'weight' must be above 0 in at least one row, got 0 in every row.")
