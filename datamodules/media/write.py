"""Writes media and labelled pairs of them, in the layouts that `MediaSource` reads."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pl_prefopt.datamodules.media.records import MediaFile
from pl_prefopt.datamodules.media.scan import digest_of
from pl_prefopt.utilities.files import write_atomic, write_jsonl

if TYPE_CHECKING:
    import pyarrow.parquet as parquet

ROWS_PER_GROUP = 64
"""Rows of a Parquet row group: few, since a row group is read as a whole."""
Sample = TypeVar("Sample")


def write_media(
    root: Path, name: str, samples: Sequence[Sample], save: Callable[[Sample, Path], object], suffix: str
) -> list[str]:
    """Write samples as `<root>/<name>-<i>.<suffix>`; return the paths below `root`.

    Args:
        root: folder.
        name: beginning of the paths below `root`.
        samples: what to write.
        save: writes one sample to a path.
        suffix: ending without the dot; `save` sees it too, since some libraries choose the format by it.
    """
    names = [f"{name}-{i}.{suffix}" for i in range(len(samples))]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    for path, sample in zip(names, samples, strict=True):
        save(sample, root / path)
    return names


def write_media_pairs(root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Write pairs as `<root>/<name>.jsonl`: files by their paths from there, and `condition` as `caption`.

    Args:
        root: folder.
        name: name of the file, below `root`.
        rows: rows of {"condition", "chosen", "rejected", ...}, files named by their paths below `root`.

    Returns:
        Path of the file.
    """
    path = root / f"{name}.jsonl"

    def line(row: dict[str, Any]) -> dict[str, Any]:
        sides = {s: Path(os.path.relpath(root / row[s], path.parent)).as_posix() for s in ("chosen", "rejected")}
        return {"caption": row["condition"], **{k: v for k, v in row.items() if k != "condition"}, **sides}

    return str(write_jsonl(path, map(line, rows)))


class EncodedFile(NamedTuple):
    """A file of a pair, with its bytes and the ending of its format."""

    file: MediaFile
    data: bytes
    suffix: str


class PairWriter(ABC):
    """A context manager that writes rows to a temporary file, which is renamed when all are written.

    Args:
        path: the resulting file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)

    @abstractmethod
    def add(self, row: dict[str, Any], files: Mapping[str, EncodedFile]) -> None:
        """Append a row; `files` are the columns that hold media."""

    @abstractmethod
    def close(self) -> None:
        """Finish the temporary file."""


class JsonlWriter(PairWriter):
    """One JSON object a line; files below the data file's folder are named, others are copied once to `<item>s/`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = self.temporary.open("w", encoding="utf-8")

    def add(self, row: dict[str, Any], files: Mapping[str, EncodedFile]) -> None:
        """Append a line."""
        named = {column: self._path(encoded) for column, encoded in files.items()}
        self._file.write(json.dumps({**row, **named}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _path(self, encoded: EncodedFile) -> str:
        folder, path = self.path.parent.resolve(), encoded.file.path
        if path is not None and path.resolve().is_relative_to(folder):
            return path.resolve().relative_to(folder).as_posix()
        copy = Path(f"{encoded.file.item}s") / f"{digest_of(encoded.data)}.{encoded.suffix}"
        if not (folder / copy).is_file():
            write_atomic(folder / copy, lambda temporary: temporary.write_bytes(encoded.data))
        return copy.as_posix()


class ParquetWriter(PairWriter):
    """Parquet with the bytes of the files inside."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows: list[dict[str, Any]] = []
        self._writer: parquet.ParquetWriter | None = None

    def add(self, row: dict[str, Any], files: Mapping[str, EncodedFile]) -> None:
        """Append a row."""
        self._rows.append({**row, **{column: encoded.data for column, encoded in files.items()}})
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, None if self._writer is None else self._writer.schema)
        self._writer = self._writer or parquet.ParquetWriter(self.temporary, table.schema)
        self._writer.write_table(table)
        self._rows = []


WRITERS: dict[str, type[PairWriter]] = {".jsonl": JsonlWriter, ".parquet": ParquetWriter}
