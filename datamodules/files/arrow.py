"""Parquet files and `datasets` as random-access rows, read from disk piece by piece."""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_prefopt.datamodules.files.cache import cache_folder
from pl_prefopt.datamodules.files.readers import Row, Source, file_digest, refuse_empty, refuse_repeated

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class ArrowSource(Source):
    """A `datasets.Dataset`, memory-mapped: from a folder of `save_to_disk`, from the hub, or from a Parquet file.

    Images, audio and video stay encoded: cells hold {"bytes", "path"}.

    Args:
        dataset: the rows.
        name: path or dataset name.
        file: the file whose content is the key of the rows; None takes the fingerprint that `datasets` keeps.
    """

    def __init__(self, dataset: Dataset, name: str, file: Path | None = None) -> None:
        for column, feature in dataset.features.items():
            if getattr(feature, "decode", False):
                dataset = dataset.cast_column(column, dataclasses.replace(feature, decode=False))
        self.name, self._dataset, self._file = name, dataset, file
        refuse_empty(self)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return self._dataset[int(index)]

    def digest(self) -> str:
        """Return a key of the content."""
        return file_digest(self._file) if self._file is not None else str(self._dataset._fingerprint)


def open_parquet(path: Path, cache: Path | None = None) -> ArrowSource:
    """Open a Parquet file for random access.

    `datasets` writes it once more, as memory-mapped Arrow, into the data cache: a row then costs microseconds, where
    Parquet has to decode a whole row group.

    Args:
        path: the file.
        cache: the data cache; None takes that of `cache_folder`.

    Raises:
        ValueError: the file cannot be read.
    """
    import datasets
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
    except Exception as error:
        raise ValueError(_parquet_error(path, error)) from None
    refuse_repeated(names, str(path))
    try:
        dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str((cache or cache_folder()) / "arrow"))
    except Exception as error:
        raise ValueError(_parquet_error(path, error.__cause__ or error)) from None
    assert isinstance(dataset, datasets.Dataset)
    return ArrowSource(dataset, str(path), path)


def open_saved(folder: Path) -> ArrowSource:
    """Open a folder that `datasets.save_to_disk` wrote for one split, and read all of it once.

    Raises:
        ValueError: a file of the folder is missing or cut off.
    """
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
        assert isinstance(dataset, datasets.Dataset)
        for column in dataset.data.columns:
            column.validate()
    except Exception as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder} must be a complete folder of datasets.save_to_disk, got one that cannot be read ({message}). It "
            "may have been cut off while copying: compare its files with the original."
        ) from None
    return ArrowSource(dataset, str(folder))


class ParquetStream(Source):
    """A Parquet file read in place, one row group at a time, for streaming: nothing is written to the disk."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self.name = str(path)
        try:
            names, counts = parquet.read_schema(path).names, parquet.read_metadata(path)
            self._ends = list(accumulate(counts.row_group(i).num_rows for i in range(counts.num_row_groups)))
        except Exception as error:
            raise ValueError(_parquet_error(path, error)) from None
        refuse_repeated(names, self.name)
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


class StreamSource(Source):
    """A dataset that is read from the network row by row; its length is unknown."""

    seekable = False

    def __init__(self, dataset: IterableDataset, name: str) -> None:
        self.name, self._dataset = name, dataset

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on."""
        rows: Any = self._dataset.skip(start) if start else self._dataset
        return iter(rows)

    def digest(self) -> str:
        """Return a key of the name: the content cannot be read in advance."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def _parquet_error(path: Path, error: BaseException) -> str:
    return (
        f"{path} must be a complete Parquet file, got {path.stat().st_size} bytes that cannot be read "
        f"({(str(error).splitlines() or [type(error).__name__])[0]}). It may have been cut off while copying: compare "
        "its size with the original."
    )
