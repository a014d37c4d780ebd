"""Files and datasets as random-access rows: nothing is kept in memory that the format lets us seek to."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules._checks import nearest

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


class Source:
    """Random-access raw rows. `where(i)` names row i as a person would find it."""

    name: str
    seekable = True

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} defines no length")

    def __getitem__(self, index: int) -> Row:
        raise TypeError(f"{type(self).__name__} defines no rows")

    def __iter__(self) -> Iterator[Row]:
        return self.iterate(0)

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on."""
        return (self[i] for i in range(start, len(self)))

    def where(self, index: int) -> str:
        """Return "file, row n", rows counted from 1."""
        return f"{self.name}, row {index + 1}"

    def digest(self) -> str:
        """Return a key of the content, not of the name or place."""
        return _file_digest(Path(self.name))


class JsonlSource(Source):
    """One JSON object a line; an index of byte offsets (8 bytes a row) is all that stays in memory."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._starts, self._lines = array("q"), array("q")
        at = 0
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                if raw.strip():
                    self._starts.append(at)
                    self._lines.append(line)
                at += len(raw)
        _refuse_empty(self)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Return "file, line n"."""
        return f"{self.name}, line {self._lines[index]}"

    def __getitem__(self, index: int) -> Row:
        with open(self.name, "rb") as file:
            file.seek(self._starts[index])
            return self._parse(file.readline(), index)

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on, reading the file once."""
        if start >= len(self):
            return
        with open(self.name, "rb") as file:
            file.seek(self._starts[start])
            index = start
            for raw in file:
                if raw.strip():
                    yield self._parse(raw, index)
                    index += 1

    def _parse(self, raw: bytes, index: int) -> Row:
        where = self.where(index)
        text = _utf8(raw.removeprefix(b"\xef\xbb\xbf") if index == 0 else raw, where)
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not valid JSON at column {error.colno} ({error.msg}); accepted: one object a line."
            ) from None
        return _object(row, where)


class TableSource(Source):
    """Rows that are held in memory: a JSON list, or CSV."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        text = _utf8(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), self.name)
        self._rows = _json_list(text, self.name) if path.suffix == ".json" else _csv_rows(text, path)
        _refuse_empty(self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return _object(self._rows[index], self.where(index))


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
        _refuse_empty(self)

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
        _refuse_empty(self)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return self._dataset[int(index)]

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


class JoinedSource(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: list[Source]) -> None:
        self.parts = parts
        self.name = ", ".join(p.name for p in parts)
        self._ends = [sum(len(p) for p in parts[: i + 1]) for i in range(len(parts))]

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Row:
        part, at = self._locate(index)
        return part[at]

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on."""
        before = 0
        for part in self.parts:
            if start < before + len(part):
                yield from part.iterate(max(0, start - before))
            before += len(part)

    def where(self, index: int) -> str:
        """Return the place inside the part."""
        part, at = self._locate(index)
        return part.where(at)

    def digest(self) -> str:
        """Return a key of all parts in order."""
        return hashlib.sha256(" ".join(p.digest() for p in self.parts).encode()).hexdigest()


def open_source(spec: str | list[str], argument: str = "train", *, streaming: bool = False) -> Source:
    """Open a file (JSONL, JSON list, Parquet, CSV, TSV), a folder, a hub name, or a list of these.

    A folder is one of `datasets.save_to_disk`, or one with Parquet or JSONL files, read in the order of their names. A
    hub name may end in a split: "org/name:train_prefs".

    Raises:
        ValueError: nothing is there, the format is unknown, the file is broken or holds no row.
    """
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec or [])
    if not specs:
        raise ValueError(f"{argument}: found {spec!r}; accepted: a path, a dataset name, or a list of them.")
    parts = [_open_one(str(s), argument, streaming) for s in specs]
    if len(parts) > 1 and not all(p.seekable for p in parts):
        raise ValueError(f"{argument}: found {specs}; accepted with streaming: files, or one dataset of the hub.")
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open_one(spec: str, argument: str, streaming: bool) -> Source:
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_folder(path, argument)
    if path.is_file():
        readers = {".jsonl": JsonlSource, ".ndjson": JsonlSource, ".parquet": ParquetSource}
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{argument}: {spec}: found the ending {path.suffix!r}; accepted: {', '.join(SUFFIXES)}.")
        return readers.get(path.suffix, TableSource)(path)
    if path.suffix in SUFFIXES or path.is_absolute() or spec.startswith(("~", "./", "../")):
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ValueError(f"{argument}: no file {spec!r} (looked from {Path.cwd().name}/). {near}".strip())
    return _open_hub(spec, argument, streaming)


def _open_folder(path: Path, argument: str) -> Source:
    if (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        import datasets

        return ArrowSource(datasets.load_from_disk(str(path)), str(path))
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ValueError(f"{argument}: {path} holds several splits; accepted: one of its folders: {', '.join(splits)}.")
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if not files:
        raise ValueError(
            f"{argument}: folder {path} holds no data file; accepted: {', '.join(SUFFIXES)}, or save_to_disk's."
        )
    return open_source([str(f) for f in files], argument)


def _open_hub(spec: str, argument: str, streaming: bool) -> Source:
    import datasets

    name, _, split = spec.partition(":")
    try:
        found = datasets.load_dataset(name, split=split or argument.split("/")[0], streaming=streaming)
    except Exception as error:
        raise ValueError(
            f"{argument}: {spec!r} is no file or folder here, and as a dataset name it could not be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            "Accepted: an existing path, or 'organisation/name:split' of a reachable dataset."
        ) from None
    return StreamSource(found, spec) if streaming else ArrowSource(found, spec)


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise ValueError(
            f"{where}: byte 0x{byte:02x} at position {error.start} is not UTF-8; accepted: UTF-8 "
            "text. Convert the file, "
            "for example with: iconv -f LATIN1 -t UTF-8."
        ) from None


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: found a {type(row).__name__}; accepted: an object with named fields.")
    return row


def _json_list(text: str, name: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); accepted: one list of "
            "objects. A file with one object a line must end in .jsonl."
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{name}: found a {type(rows).__name__} at the top; accepted: a list of objects.")
    return rows


def _csv_rows(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, row {len(rows) + 1}: found another number of fields than the "
                    f"{len(reader.fieldnames or [])} "
                    "of the header; accepted: the same number in every row."
                )
            rows.append({k: _plain(v) for k, v in row.items()})
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from None
    return rows


def _plain(cell: str) -> Any:
    """A CSV cell that is a JSON list or object becomes one; all else stays text (numeric columns are parsed later)."""
    if cell[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def _refuse_empty(source: Source) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.name}: holds no row; accepted: at least one.")


def _parquet_error(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    return (
        f"{path}: cannot be read as Parquet ({size} bytes; {str(error).splitlines()[0]}); accepted: a "
        "complete Parquet file. "
        "It may have been cut off while copying: compare its size with the original."
    )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_3_10(file)
        )


def _digest_3_10(file: io.BufferedReader) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()
