"""Tokenised rows as one memory-mapped Arrow table: the data may be larger than memory.

Legend: N rows, K completions of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from pl_prefopt.datamodules.files.columns import Numbers
from pl_prefopt.datamodules.text.tokenize import Encoded
from pl_prefopt.scores import COLUMNS

TABLE, META = "rows.arrow", "meta.json"
ROWS_PER_BATCH = 512
IDS = pa.list_(pa.int32())


class TokenizedRow(NamedTuple):
    """What is stored of a row."""

    ids: Encoded
    numbers: Numbers
    source_row: int


class _Meta(TypedDict):
    ragged: bool
    counts: dict[str, int]
    unused: list[str]


def write_rows(
    folder: Path, rows: Iterable[TokenizedRow], counts: Mapping[str, int], unused: Collection[str] = ()
) -> int:
    """Write a folder that `TokenizedRows` reads; return the number of rows.

    Args:
        folder: an existing folder.
        rows: the rows, all with the same numeric columns.
        counts: what happened to the rows of the file; read after the last row was taken from `rows`.
        unused: columns of the file that nothing has read; read as late as `counts`.
    """
    written, sizes = 0, set[int]()
    writer: pa.ipc.RecordBatchFileWriter | None = None
    for part in _chunks(rows, ROWS_PER_BATCH):
        schema = _schema(part[0].numbers)
        columns: dict[str, list[Any]] = {
            "source_row": [row.source_row for row in part],
            "prompt_ids": [row.ids.prompt for row in part],
            "completion_ids": [row.ids.completions for row in part],
            **{name: [row.numbers[name] for row in part] for name in part[0].numbers},
        }
        writer = writer or pa.ipc.new_file(folder / TABLE, schema)
        writer.write_batch(pa.RecordBatch.from_pydict(columns, schema))
        written += len(part)
        sizes |= {len(row.ids.completions) for row in part}
    if writer is not None:
        writer.close()
    meta: _Meta = {"ragged": len(sizes) > 1, "counts": dict(counts), "unused": sorted(unused)}
    (folder / META).write_text(json.dumps(meta))
    return written


def _schema(numbers: Numbers) -> pa.Schema:
    kinds = {"row": pa.float32(), "sample": pa.list_(pa.float32())}
    columns = {name: kinds[COLUMNS[name].per] for name in sorted(numbers)}
    if "margins" in columns:
        columns["margins"] = pa.list_(pa.list_(pa.float32()))
    ids = {"source_row": pa.int64(), "prompt_ids": IDS, "completion_ids": pa.list_(IDS)}
    return pa.schema(list((ids | columns).items()))


def _chunks(rows: Iterable[TokenizedRow], size: int) -> Iterator[list[TokenizedRow]]:
    chunk: list[TokenizedRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class TokenizedRows(Dataset[dict[str, Any]]):
    """Random access to tokenised rows.

    `rows[i]` is a dict: `index`, `prompt_ids` (list), `completion_ids` (K lists, best first) and the data columns that
    the file gave (`pl_prefopt.scores.COLUMNS`): one number per row, or K per row.

    Args:
        folder: where `write_rows` left the table.
        select: (N,) rows of the folder to show, in this order; None means all.
    """

    def __init__(self, folder: str | Path, select: np.ndarray | None = None) -> None:
        self.folder = Path(folder)
        self.meta: _Meta = json.loads((self.folder / META).read_text())
        self._select = select
        self._open()

    def _open(self) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(self.folder / TABLE)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._table = pa.Table.from_batches(self._batches)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta, "_select": self._select}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._table.num_rows if self._select is None else len(self._select)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, at = self._locate(index)
        row: dict[str, Any] = {
            "index": index,
            "prompt_ids": _numpy(batch["prompt_ids"][at]).tolist(),
            "completion_ids": [_numpy(ids).tolist() for ids in batch["completion_ids"][at].values],
        }
        return row | {name: batch[name][at].as_py() for name in self.numbers}

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        """Return the record batch of a row, and the row's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = index if self._select is None else int(self._select[index])
        # All record batches but the last hold ROWS_PER_BATCH rows, so that of a row needs no search.
        return self._batches[number // ROWS_PER_BATCH], number % ROWS_PER_BATCH

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numeric columns."""
        return tuple(self._table.column_names[3:])

    @property
    def ragged(self) -> bool:
        """Whether rows differ in their number of completions."""
        return self.meta["ragged"]

    @property
    def counts(self) -> dict[str, int]:
        """What happened while the file was tokenised: rows read, kept, dropped (by reason), changed (by what)."""
        return dict(self.meta["counts"])

    @property
    def unused(self) -> list[str]:
        """Columns of the file that nothing has read."""
        return self.meta["unused"]

    @property
    def prompt_lengths(self) -> np.ndarray:
        """(N,) tokens of each prompt."""
        return self._selected(_lengths(self._table["prompt_ids"]))

    def completion_lengths(self, k: int) -> np.ndarray:
        """(N,) tokens of completion k (0 chosen, 1 rejected)."""
        lengths, starts = self._completions()
        return lengths[self._selected(starts) + k]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of prompt + longest completion."""
        lengths, starts = self._completions()
        return self.prompt_lengths + self._selected(np.maximum.reduceat(lengths, starts))

    def _completions(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all completions of the table, one row behind the other, and where each row begins."""
        completions = self._table["completion_ids"]
        lengths = np.concatenate([_lengths(chunk.flatten()) for chunk in completions.chunks])
        counts = _lengths(completions)
        return lengths, np.cumsum(counts) - counts

    def source_row(self, index: int) -> int:
        """Return the number (from 0) of the row in the file that row `index` came from."""
        batch, at = self._locate(index)
        return batch["source_row"][at].as_py()

    @property
    def source_rows(self) -> np.ndarray:
        """(N,) the same for all rows."""
        return self._selected(self._table["source_row"].to_numpy())

    def digest(self) -> str:
        """Return the SHA-256 of all token ids and their borders, in order.

        It depends on what the model sees and on nothing else: not on weights or margins, names, folders or batch size.
        """
        total = hashlib.sha256(b"rows-1")
        for row in map(self.__getitem__, range(len(self))):
            parts = [row["prompt_ids"], *row["completion_ids"]]
            total.update(np.asarray([len(parts), *map(len, parts)], "<i8").tobytes())
            total.update(np.concatenate([np.asarray(p, "<i4") for p in parts]).tobytes())
        return total.hexdigest()

    def select(self, rows: np.ndarray) -> TokenizedRows:
        """Return a view of `rows`; `index` counts within the view."""
        base = np.arange(len(self)) if self._select is None else self._select
        return TokenizedRows(self.folder, base[rows])

    def _selected(self, values: np.ndarray) -> np.ndarray:
        return values if self._select is None else values[self._select]


def _numpy(ids: pa.ListScalar) -> np.ndarray:
    """The ids of a cell without a copy; `as_py` would make a Python object of each by way of Arrow scalars."""
    return ids.values.to_numpy(zero_copy_only=False)


def _lengths(lists: pa.ListArray | pa.ChunkedArray) -> np.ndarray:
    counts: Any = pc.call_function("list_value_length", [lists])
    return counts.to_numpy(zero_copy_only=False).astype(np.int64)
