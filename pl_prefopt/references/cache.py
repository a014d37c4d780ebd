"""Reference log-probabilities per token on disk, which reach a module as one more column of the row.

Values are computed once, resumable, shared by ranks, and refused when they belong to other weights, tokens or dtype.

Shapes: N rows of a split, K completions of a row, T tokens of a completion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from pl_prefopt.utilities.digests import tensors_digest
from pl_prefopt.utilities.files import Parts, track, write_atomic, write_json

ROWS_PER_FILE = 512
COLUMN = "reference_logps"
"""Name of the column: (K, T) of a row, (B, K, T) of a batch."""
_DELETE = "Delete this file, and its values will be computed again."
Row = Mapping[str, Any]
Compute = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
R = TypeVar("R", bound="RowsOfTokens")


class RowsOfTokens(Protocol):
    """Random-access rows whose values can be cached."""

    lengths: np.ndarray

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    def digest(self) -> str: ...


class LogpCache:
    """One split's values: files of 512 rows each, written atomically, plus a JSON key.

    Args:
        folder: cache folder of the split.
        key: what the values depend on: {"weights", "configuration", "tokens", "dtype"}.
        rows: N.

    Raises:
        ValueError: the folder holds a cache of another key; the message names each part that differs.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], rows: int) -> None:
        self.folder = folder
        self.key = {**key, "rows": rows, "rows_per_file": ROWS_PER_FILE}
        self.parts = Parts(folder, rows, ROWS_PER_FILE)
        self._values = torch.empty(0)
        self._lengths = self._starts = torch.empty(0, 0, dtype=torch.long)
        key_file = folder / "key.json"
        if key_file.exists():
            saved = json.loads(key_file.read_text())
            differing = [name for name in self.key if saved.get(name) != self.key[name]]
            if differing:
                values = "; ".join(f"{k}: cached {_short(saved.get(k))}, now {_short(self.key[k])}" for k in differing)
                raise ValueError(
                    f"the reference cache {folder} was made by other {' and '.join(differing)} ({values}). "
                    "Delete the folder or give another path."
                )

    def fill(self, compute: Compute, *, rank: int = 0, world_size: int = 1, hidden: bool = True) -> None:
        """Compute and write the missing parts of this rank.

        Args:
            compute: row ids -> (n, K, T) values and (n, K) lengths, on the CPU.
            rank: of this process.
            world_size: number of processes that share the folder.
            hidden: no progress bar.
        """
        write_json(self.folder / "key.json", self.key, indent=2)
        title = f"reference log-probs, {self.folder.name}"
        for part in track(
            self.parts.missing(rank, world_size), title, size=lambda part: len(self.parts.items(part)), hidden=hidden
        ):
            values, lengths = compute(self.parts.items(part))
            mask = torch.arange(values.shape[-1]) < lengths[..., None]
            tensors = {"logps": values[mask].contiguous(), "lengths": lengths.contiguous()}
            checksum = {"sha256": tensors_digest(tensors.items())}
            write_atomic(
                self.parts.file(part),
                lambda path, tensors=tensors, checksum=checksum: save_file(tensors, path, metadata=checksum),
            )

    def load(self) -> None:
        """Read all parts; every rank must have finished writing.

        Raises:
            ValueError: a file is damaged.
        """
        parts = [_load_part(file) for file in self.parts.files()]
        width = max(part["lengths"].shape[1] for part in parts)
        self._values = torch.cat([part["logps"] for part in parts])
        self._lengths = torch.cat(
            [nn.functional.pad(part["lengths"], (0, width - part["lengths"].shape[1])) for part in parts]
        )
        flat = self._lengths.flatten()
        self._starts = (flat.cumsum(0) - flat).view_as(self._lengths)

    def row(self, index: int) -> list[Tensor]:
        """The K vectors of values of a row; the padding of ragged lists has none."""
        spans = zip(self._starts[index].tolist(), self._lengths[index].tolist(), strict=True)
        return [self._values[start : start + length] for start, length in spans]


class CachedRows(Dataset[Row]):
    """Rows with the column `reference_logps`, from the moment that `cache` is there; all else is the rows' own.

    Args:
        rows: random-access rows, each a mapping.
    """

    def __init__(self, rows: RowsOfTokens) -> None:
        self.rows = rows
        self.cache: LogpCache | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        return row if self.cache is None else {**row, COLUMN: self.cache.row(index)}

    def __getattr__(self, name: str) -> Any:
        if name == "rows":  # while pickle restores the object
            raise AttributeError(name)
        return getattr(self.rows, name)

    def select(self, indices: np.ndarray) -> CachedRows:
        """A view of `indices`; its values are cached on their own."""
        return CachedRows(self.rows.select(indices))  # type: ignore[attr-defined]


class CachedCollate:
    """Collate rows, and stack `reference_logps` where all of them have it.

    Args:
        collate: of the datamodule, which does not know the column.
    """

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch with `reference_logps` (B, K, T), zero beyond each length, and `reference_lengths` (B, K)."""
        batch = self.collate([{k: v for k, v in row.items() if k != COLUMN} for row in rows])
        if all(COLUMN in row for row in rows):
            values = [completion for row in rows for completion in row[COLUMN]]
            count = len(rows[0][COLUMN])
            batch[COLUMN] = nn.utils.rnn.pad_sequence(values, batch_first=True).unflatten(0, (len(rows), count))
            batch["reference_lengths"] = torch.tensor([len(v) for v in values]).view(len(rows), count)
        return batch


def lookup(batch: Mapping[str, Any], lengths: Tensor) -> Tensor | None:
    """(B, K, T) reference log-probabilities of a batch, None where its rows do not bring them.

    Args:
        batch: as `CachedCollate` makes it.
        lengths: (B, K) tokens of the completions that are scored; K may be smaller than in the batch.

    Raises:
        ValueError: a row's token counts are not those that were cached.
    """
    if COLUMN not in batch:
        return None
    count, width = lengths.shape[1], max(int(lengths.max()), 1)
    cached = batch["reference_lengths"][:, :count].to(lengths)
    if not torch.equal(cached, lengths):
        rows = torch.as_tensor(batch["index"])[(cached != lengths).any(1).cpu()].tolist()
        raise ValueError(
            f"rows {rows} must have the token counts of the reference cache, got other ones. Delete the cache's folder "
            "or give another path."
        )
    return batch[COLUMN][:, :count, :width].to(lengths.device)


def in_order_of_length(
    rows: RowsOfTokens, score: Callable[[list[Row]], tuple[Tensor, Tensor]], size: int = 8
) -> Compute:
    """A `compute` for `LogpCache.fill` that scores rows of like length together, so that little is padding.

    Args:
        rows: what the row ids refer to.
        score: at most `size` rows -> (n, K, T) values and (n, K) lengths.
        size: rows per call, >= 1.
    """

    def compute(items: Sequence[int]) -> tuple[Tensor, Tensor]:
        order = sorted(items, key=lambda i: -int(rows.lengths[i]))
        values: dict[int, Tensor] = {}
        lengths: dict[int, Tensor] = {}
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            logps, counts = score([rows[i] for i in indices])
            values |= zip(indices, logps.float().cpu(), strict=True)
            lengths |= zip(indices, counts.cpu(), strict=True)
        widest = max(v.shape[1] for v in values.values())
        most = max(v.shape[0] for v in values.values())
        # lists may be ragged: rows with fewer completions end in completions of length 0
        padded = [
            nn.functional.pad(values[i], (0, widest - values[i].shape[1], 0, most - len(values[i]))) for i in items
        ]
        return torch.stack(padded), torch.stack(
            [nn.functional.pad(lengths[i], (0, most - len(lengths[i]))) for i in items]
        )

    return compute


def _load_part(file: Path) -> dict[str, Tensor]:
    """The tensors of a part, compared with their checksum; files of earlier versions have none."""
    try:
        with safe_open(file, framework="pt") as content:
            checksum = (content.metadata() or {}).get("sha256")
            tensors = {name: content.get_tensor(name) for name in ("logps", "lengths")}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} must be a complete file of a reference cache, got {error}. {_DELETE}") from error
    if checksum is not None and checksum != tensors_digest(tensors.items()):
        raise ValueError(f"{file} must have the content of its checksum {checksum[:12]}, got another one. {_DELETE}")
    return tensors


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) > 16 else text
