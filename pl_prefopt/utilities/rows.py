"""Rows of data files that cannot be used: one error that names file, row and field, and the checks that raise it."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pl_prefopt.utilities.suggestions import did_you_mean

FLOAT32_MAX = 3.4028234663852886e38
"""Greatest finite float32, the type in which batches hold numbers."""
BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that are drawn as nothing: Hangul fillers, the empty Braille cell."""
INVISIBLE = frozenset(("Cc", "Cf", "Cn", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"))
"""Unicode categories without ink of their own: control, format, unassigned, whitespace, combining marks."""
DROP_HINT = "Repair the row, or set on_bad_row: drop to leave such rows out and count them."


class BadRow(ValueError):
    """A row that cannot be used: "<file>, row <n>: field 'x' must be <accepted>, got <found>. <hint>".

    Args:
        reason: short name under which dropped rows are counted, for example "empty_completion".
        field: the column, or the path inside it.
        found: what stands there.
        accepted: what may stand there.
        hint: the next step.
    """

    def __init__(self, reason: str, field: str, found: str, accepted: str, hint: str = "") -> None:
        self.reason, self.field, self.found, self.accepted, self.hint = reason, field, found, accepted, hint
        super().__init__(self.message("row"))

    def message(self, where: str) -> str:
        """Return the sentence for a row at `where` (file and row)."""
        sentence = f"{where}: field {self.field!r} must be {self.accepted}, got {self.found}."
        return f"{sentence} {self.hint}" if self.hint else sentence

    def at(self, where: str) -> ValueError:
        """Return a ValueError that also names file and row."""
        return ValueError(self.message(where))


def missing_column(
    name: str, columns: Iterable[str], hint: str = "", reason: str = "missing_column", accepted: str = "a column"
) -> BadRow:
    """Return the error for a column that the row lacks; `columns` are those it has.

    Without a hint, the nearest of the row's own columns is suggested.
    """
    present = list(columns)
    found = f"only {', '.join(map(repr, present))}" if present else "an empty row"
    return BadRow(reason, name, found, accepted, hint or did_you_mean(name, present))


def abbreviate(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, shortened in the middle to at most `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than some thousand digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= limit else f"{text[: limit - 12]}...{text[-9:]}"


def number(field: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float in [low, high].

    Raises:
        BadRow: it is no number, not finite, or out of range.
    """
    accepted = "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]"
    if high == math.inf and low > -math.inf:
        accepted = f"a finite number >= {low:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow("bad_number", field, abbreviate(value), accepted)
    if not abs(value) < math.inf or not low <= value <= high:  # integers may exceed what isfinite can take
        raise BadRow("bad_number", field, abbreviate(value), accepted, "Repair or remove the row.")
    if abs(value) > FLOAT32_MAX:
        accepted = f"a number of at most {FLOAT32_MAX:.2g} (float32)"
        raise BadRow("bad_number", field, abbreviate(value), accepted, "Repair or remove the row.")
    return float(value)


def is_visible(text: str) -> bool:
    """Whether a text has a character that is neither whitespace nor control, zero-width or other invisible one."""
    return any(c not in BLANKS and unicodedata.category(c) not in INVISIBLE for c in text)


def encodable(field: str, text: str) -> str:
    """Return the text.

    Raises:
        BadRow: it holds one half of a surrogate pair, which no UTF-8 text and so no tokenizer can take.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"the lone surrogate {text[error.start]!r} at position {error.start}"
        raise BadRow("lone_surrogate", field, found, "valid Unicode text", DROP_HINT) from None
    return text


def inside(folder: str | Path, path: str) -> Path:
    """Return `folder / path`, refusing paths in data files that lead out of the data folder (links included).

    Raises:
        BadRow: the path leads elsewhere (absolute, with "..", or by a link), or no file can have it.
    """
    root = resolved(folder)
    try:
        if "\0" in path:
            raise ValueError("embedded null byte")
        parent, name = os.path.split(root / path)
        full = resolved(parent) / name
        full = full.resolve() if name == os.pardir or full.is_symlink() else full
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRow("bad_path", "path", f"{abbreviate(path)} ({reason})", "a path inside the data folder") from None
    if not full.is_relative_to(root):
        raise BadRow("outside_path", "path", abbreviate(path), "a path inside the data folder")
    return full


def resolved(folder: str | Path) -> Path:
    """Return a folder without links, looked up once: data files name the same folders in every row."""
    climbs = os.pardir in Path(folder).parts  # after a link, "x/.." is not the folder of x: only the disk can tell
    return Path(folder).resolve() if climbs else _resolved(os.path.abspath(folder))


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()
