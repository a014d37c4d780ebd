"""Writes labelled pairs of images that `ImagePreferenceDataModule` reads: JSON lines beside files, or Parquet."""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from pl_prefopt.datamodules.media.records import Picture
from pl_prefopt.datamodules.media.scan import digest_of

ROWS_PER_GROUP = 64
"""Rows of a row group: few, since a row group is read as a whole."""


class PairWriter(ABC):
    """Rows go to a hidden file that takes its name when all is written; a context manager.

    Args:
        path: the file that comes out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.part = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)

    @abstractmethod
    def add(self, row: dict[str, Any], images: dict[str, tuple[Picture, bytes]]) -> None:
        """Append a row; `images` are the columns that hold pictures, with their bytes."""

    @abstractmethod
    def close(self) -> None:
        """Finish the hidden file."""


class JsonlWriter(PairWriter):
    """One JSON object a line; images below the file's folder are named, others are copied to `images/` once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = self.part.open("w", encoding="utf-8")

    def add(self, row: dict[str, Any], images: dict[str, tuple[Picture, bytes]]) -> None:
        """Append a line."""
        named = {column: self._named(picture, data) for column, (picture, data) in images.items()}
        self._file.write(json.dumps({**row, **named}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _named(self, picture: Picture, data: bytes) -> str:
        folder = self.path.parent.resolve()
        if picture.path is not None and picture.path.resolve().is_relative_to(folder):
            return picture.path.resolve().relative_to(folder).as_posix()
        with Image.open(io.BytesIO(data)) as image:
            place = Path("images") / f"{digest_of(data)}.{(image.format or 'image').lower()}"
        (folder / "images").mkdir(exist_ok=True)
        if not (folder / place).is_file():
            (folder / place).write_bytes(data)
        return place.as_posix()


class ParquetWriter(PairWriter):
    """Parquet with the bytes of the images inside."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def add(self, row: dict[str, Any], images: dict[str, tuple[Picture, bytes]]) -> None:
        """Append a row."""
        self._rows.append({**row, **{column: data for column, (_, data) in images.items()}})
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
        self._writer = self._writer or parquet.ParquetWriter(self.part, table.schema)
        self._writer.write_table(table)
        self._rows = []


WRITERS: dict[str, type[PairWriter]] = {".jsonl": JsonlWriter, ".parquet": ParquetWriter}
