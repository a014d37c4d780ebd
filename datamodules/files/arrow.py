"""Parquet files and `datasets` as random-access rows, read from disk piece by piece."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.readers import Row, Source, refuse_empty


class ParquetSource(Source):
    """A Parquet file, read one row group at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self.name = str(path)
        try:
            counts = parquet.ParquetFile(path).metadata
            sizes = [counts.row_group(i).num_rows for i in range(counts.num_row_groups)]
        except Exception as error:
            raise ValueError(_parquet_error(path, error)) from None
        self._ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self._group: tuple[int, list[Row]] = (-1, [])
        refuse_empty(self)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        import pyarrow.parquet as parquet

        group = bisect_right(self._ends, index)
        if self._group[0] != group:
            try:
                self._group = (group, parquet.ParquetFile(self.name).read_row_group(group).to_pylist())
            except Exception as error:
                raise ValueError(_parquet_error(Path(self.name), error)) from None
        return self._group[1][index - (self._ends[group - 1] if group else 0)]


class ArrowSource(Source):
    """A `datasets.Dataset`: memory-mapped, from a folder of `save_to_disk` or from the hub by name."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.name, self._dataset = name, dataset
        refuse_empty(self)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return self._dataset[int(index)]

    def undecoded(self) -> ArrowSource:
        """Return the same rows with columns of images as {"bytes", "path"}."""
        from datasets import Image

        found = self._dataset
        for name, feature in found.features.items():
            if isinstance(feature, Image):
                found = found.cast_column(name, Image(decode=False))
        return ArrowSource(found, self.name)

    def digest(self) -> str:
        """Return the fingerprint that `datasets` keeps with the content."""
        return str(self._dataset._fingerprint)


class StreamSource(Source):
    """A dataset that comes over the net row by row; its length is unknown."""

    seekable = False

    def __init__(self, dataset: Any, name: str) -> None:
        self.name, self._dataset = name, dataset

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on."""
        return iter(self._dataset.skip(start) if start else self._dataset)

    def digest(self) -> str:
        """Return a key of the name: the content cannot be seen in advance."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def _parquet_error(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    return (
        f"{path}: cannot be read as Parquet ({size} bytes; {str(error).splitlines()[0]}); accepted: a "
        "complete Parquet file. "
        "It may have been cut off while copying: compare its size with the original."
    )
