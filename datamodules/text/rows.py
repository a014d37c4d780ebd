"""Tokenised rows in flat arrays on disk, memory-mapped: the data may be larger than memory.

Legend: N rows, C completions of all rows together (2N for pairs), M margins per completion.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from torch.utils.data import Dataset

from pl_prefopt.datamodules.text.tokenize import Encoded

ARRAYS = {
    "prompt_tokens": "<i4",
    "prompt_ends": "<i8",
    "completion_tokens": "<i4",
    "completion_ends": "<i8",
    "row_ends": "<i8",
    "source_rows": "<i8",
}
PER_ROW = ("weight", "margin", "preference_prob")


class TokenizedRows(Dataset[dict[str, Any]]):
    """Random access to tokenised rows.

    `rows[i]` is a dict: `index`, `prompt_ids` (list), `completion_ids` (K lists, best first) and the numbers that the
    file gave per row (`weight`, `margin`, `preference_prob`) or per completion (`relevance`, `ranks`, `targets`,
    `margins`).

    Args:
        folder: where `RowsWriter` left the arrays.
        select: (N,) rows of the folder to show, in this order; None means all.
    """

    def __init__(self, folder: str | Path, select: np.ndarray | None = None) -> None:
        self.folder = Path(folder)
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        self._select = select
        self._open()

    def _open(self) -> None:
        self._arrays = {name: _mapped(self.folder / f"{name}.bin", kind) for name, kind in ARRAYS.items()}
        width = max(1, self.meta["margins"])
        self._numbers = {name: _mapped(self.folder / f"{name}.bin", "<f4") for name in self.meta["numbers"]}
        if "margins" in self._numbers:
            self._numbers["margins"] = self._numbers["margins"].reshape(-1, width)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta, "_select": self._select}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._arrays["row_ends"]) if self._select is None else len(self._select)

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index if self._select is None else int(self._select[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        at, a = self._at(index), self._arrays
        first, last = _span(a["row_ends"], at)
        row: dict[str, Any] = {
            "index": index,
            "prompt_ids": a["prompt_tokens"][slice(*_span(a["prompt_ends"], at))].tolist(),
            "completion_ids": [
                a["completion_tokens"][slice(*_span(a["completion_ends"], c))].tolist() for c in range(first, last)
            ],
        }
        for name, values in self._numbers.items():
            row[name] = values[at].item() if name in PER_ROW else values[first:last].tolist()
        return row

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numeric columns."""
        return tuple(self._numbers)

    @property
    def ragged(self) -> bool:
        """Whether rows differ in their number of completions."""
        return bool(self.meta["ragged"])

    @property
    def counts(self) -> dict[str, int]:
        """What happened while the file was tokenised: rows read, kept, dropped (by reason), changed (by what)."""
        return dict(self.meta["counts"])

    @property
    def prompt_lengths(self) -> np.ndarray:
        """(N,) tokens of each prompt."""
        return self._chosen(np.diff(self._arrays["prompt_ends"], prepend=0))

    def completion_lengths(self, k: int) -> np.ndarray:
        """(N,) tokens of completion k (0 chosen, 1 rejected)."""
        starts = self._chosen(np.concatenate([[0], self._arrays["row_ends"][:-1]]))
        return np.diff(self._arrays["completion_ends"], prepend=0)[starts + k]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of prompt + longest completion."""
        starts = np.concatenate([[0], self._arrays["row_ends"][:-1]])
        longest = np.maximum.reduceat(np.diff(self._arrays["completion_ends"], prepend=0), starts)
        return self.prompt_lengths + self._chosen(longest)

    def source_row(self, index: int) -> int:
        """Return the number (from 0) of the row in the file that row `index` came from."""
        return int(self._arrays["source_rows"][self._at(index)])

    @property
    def source_rows(self) -> np.ndarray:
        """(N,) the same for all rows."""
        return self._chosen(np.asarray(self._arrays["source_rows"]))

    def digest(self) -> str:
        """Return the SHA-256 of all token ids and their borders, in order.

        It depends on what the model sees and on nothing else: not on weights or margins, names, folders or batch size.
        """
        total = hashlib.sha256(b"rows-1")
        for at in range(0, len(self), 1024):
            for i in range(at, min(at + 1024, len(self))):
                row = self[i]
                parts = [row["prompt_ids"], *row["completion_ids"]]
                total.update(np.asarray([len(parts), *map(len, parts)], "<i8").tobytes())
                total.update(np.concatenate([np.asarray(p, "<i4") for p in parts]).tobytes())
        return total.hexdigest()

    def select(self, rows: np.ndarray) -> TokenizedRows:
        """Return a view of `rows`; `index` counts within the view."""
        base = np.arange(len(self)) if self._select is None else self._select
        return TokenizedRows(self.folder, base[rows])

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self._select is None else values[self._select]


class RowsWriter:
    """Append rows to a folder that `TokenizedRows` reads. Use as a context manager; `meta.json` is written last."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in ARRAYS}
        self._ends = Counter()
        self._numbers: tuple[str, ...] | None = None
        self._margins = 0
        self._sizes: set[int] = set()

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            meta = {
                "numbers": list(self._numbers or ()),
                "margins": self._margins,
                "ragged": len(self._sizes) > 1,
                "counts": dict(self.counts),
            }
            (self.folder / "meta.json").write_text(json.dumps(meta))

    def add(self, row: Encoded, numbers: dict[str, Any], source_row: int) -> None:
        """Append one row; `numbers` must have been checked by `check_numbers`."""
        self._put("prompt_tokens", row.prompt)
        self._put("prompt_ends", [self._end("prompt", len(row.prompt))])
        for completion in row.completions:
            self._put("completion_tokens", completion)
            self._put("completion_ends", [self._end("completion", len(completion))])
        self._put("row_ends", [self._end("row", len(row.completions))])
        self._put("source_rows", [source_row])
        self._sizes.add(len(row.completions))
        for name, value in numbers.items():
            self._files[name].write(np.asarray(value, "<f4").tobytes())

    def check_numbers(self, numbers: dict[str, Any]) -> str | None:
        """Return the name of a column that this row has and earlier rows lack, or the other way round."""
        width = len(numbers["margins"][0]) if "margins" in numbers else 0
        if self._numbers is None:
            self._numbers, self._margins = tuple(sorted(numbers)), width
            self._files |= {name: (self.folder / f"{name}.bin").open("wb") for name in self._numbers}
        odd = set(self._numbers) ^ set(numbers)
        return min(odd) if odd else ("margins" if width != self._margins else None)

    def _end(self, what: str, size: int) -> int:
        self._ends[what] += size
        return self._ends[what]

    def _put(self, name: str, values: list[int]) -> None:
        self._files[name].write(np.asarray(values, ARRAYS[name]).tobytes())


def _mapped(path: Path, kind: str) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def _span(ends: np.ndarray, at: int) -> tuple[int, int]:
    return (int(ends[at - 1]) if at else 0), int(ends[at])
