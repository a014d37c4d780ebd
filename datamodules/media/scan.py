"""Every file is decoded once before training: bad rows come to light, sizes and content keys are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pl_prefopt.datamodules.files.columns import Numbers, SameColumns
from pl_prefopt.datamodules.media.kind import MediaKind, Size
from pl_prefopt.datamodules.media.records import MediaFile, MediaSource, Record
from pl_prefopt.utilities.digests import json_digest
from pl_prefopt.utilities.files import track, write_json
from pl_prefopt.utilities.rows import DROP_HINT, BadRow

FORMAT = 3
"""Version of the stored result; files of another version are scanned anew."""
ROWS_AT_ONCE = 64
COLUMNS = ("row", "first", "second", "label", "caption", "digest_0", "digest_1", "size_0", "size_1")


class Scanned(TypedDict):
    """What a scan has found, in plain values."""

    columns: dict[str, list[Any]]
    """`COLUMNS`, one value per pair: row of the source, positions of both files in it, label, caption, content keys and
    sizes."""
    numbers: dict[str, list[Any]]
    """Data columns, one value per pair."""
    counts: dict[str, int]
    unused: list[str]
    """Columns of the file that nothing has read."""
    files: dict[str, list[int]]
    """Path -> size and time of the file, to notice changes."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """Keys of the bytes and of the decoded content, size and conversions of a file."""

    digest: str
    content: str
    size: Size
    changed: list[str]


def scan(source: MediaSource, *, on_bad_row: str, limit: int | None, folder: Path, progress: bool) -> Scanned:
    """Decode every file once: pairs with content keys and sizes as columns, and counts; kept in `folder`.

    Raises:
        ValueError: a row cannot be used (file, row, field, what is accepted, what was found), or none is left.
    """
    kind = source.kind
    key = json_digest([FORMAT, source.stamp(), kind.item, kind.settings, on_bad_row, limit])[:24]
    path = folder / f"{key}.json"
    if path.is_file():
        scanned: Scanned = json.loads(path.read_text(encoding="utf-8"))
        if all(_file_stamp(name) == stamp for name, stamp in scanned["files"].items()):
            return scanned
    scanned = _Scan(source, on_bad_row).run(min(len(source), limit or len(source)), progress)
    write_json(path, scanned)
    return scanned


class _Scan:
    """The rows of one source, in order, with the decoding spread over threads."""

    def __init__(self, source: MediaSource, on_bad_row: str) -> None:
        self.source, self.on_bad_row = source, on_bad_row
        self.counts: Counter[str] = Counter()
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.numbers: dict[str, list[Any]] = {}
        self.files: dict[str, list[int]] = {}
        self.unused: set[str] = set()
        self.same_columns = SameColumns()

    def run(self, total: int, progress: bool) -> Scanned:
        name = Path(self.source.source.name).name
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            starts = range(0, total, ROWS_AT_ONCE)
            size = lambda start: min(ROWS_AT_ONCE, total - start)  # noqa: E731
            for start in track(starts, f"scanning {name}", size=size, hidden=not progress):
                rows = range(start, start + size(start))
                # records are read here, one after the other: not every source can be read from several threads
                records = list(self._records(rows))
                for row, outcome in zip(rows, pool.map(self._inspect, records), strict=True):
                    self._take(row, outcome)
        self.counts["read"] = total
        if not self.columns["row"]:
            raise ValueError(
                f"{self.source.source.name}: at least one row must be left, got none; counted: {dict(self.counts)}"
            )
        self.same_columns.check_weights(self.source.source.name)
        return {
            "columns": self.columns,
            "numbers": self.numbers,
            "counts": dict(self.counts),
            "unused": sorted(self.unused),
            "files": self.files,
        }

    def _records(self, rows: range) -> Iterator[Record | BadRow]:
        for row in rows:
            try:
                yield self.source[row]
            except BadRow as error:
                yield error

    def _inspect(self, record: Record | BadRow) -> tuple[Record, list[Inspected]] | BadRow:
        if isinstance(record, BadRow):
            return record
        try:
            return record, [inspect(file, self.source.kind) for file in record.files]
        except BadRow as error:
            return error

    def _take(self, row: int, outcome: tuple[Record, list[Inspected]] | BadRow) -> None:
        """Add the pairs of a row, or refuse or count it."""
        try:
            if isinstance(outcome, BadRow):
                raise outcome
            self._add(row, *outcome)
        except BadRow as error:
            if self.on_bad_row == "error":
                raise error.at(self.source.where(row)) from None
            self.counts[f"dropped/{error.reason}"] += 1

    def _add(self, row: int, record: Record, files: list[Inspected]) -> None:
        refuse_same([file.digest for file in files], record)
        refuse_same([file.content for file in files], record, "the same content as another, in another encoding")
        self.unused |= record.unused
        self.same_columns(record.numbers)
        for file in files:
            self.counts.update(f"changed/{kind}" for kind in file.changed)
        self.files |= {str(f.path): _file_stamp(str(f.path)) for f in record.files if f.path is not None}
        for p in record.preferences:
            a, b = files[p.first], files[p.second]
            values = (row, p.first, p.second, p.label, record.caption, a.digest, b.digest, a.size, b.size)
            for name, value in zip(COLUMNS, values, strict=True):
                self.columns[name].append(value)
            numbers: Numbers = record.numbers_of(p)
            for name, value in numbers.items():
                self.numbers.setdefault(name, []).append(value)


def digest_of(data: bytes) -> str:
    """Return the key of an encoded file."""
    return hashlib.sha256(data).hexdigest()[:32]


def refuse_same(digests: list[str], record: Record, words: str = "the same bytes as another") -> None:
    """Raise `BadRow` where two files of a row have the same key."""
    if len(set(digests)) < len(digests):
        file = record.files[1]
        raise BadRow(
            "identical",
            file.field,
            words,
            f"different from the other {file.item} files",
            DROP_HINT,
        )


def inspect(file: MediaFile, kind: MediaKind[Any]) -> Inspected:
    """Decode a file and keep its key, size and conversions.

    Raises:
        BadRow: it cannot be used.
    """
    data = file.read()
    decoded = kind.decode(data, file.field)
    digest = digest_of(data)
    content = digest if kind.content is None else digest_of(repr(decoded.size).encode() + kind.content(decoded.media))
    return Inspected(digest, content, decoded.size, list(decoded.changed))


def _file_stamp(name: str) -> list[int]:
    try:
        stat = os.stat(name)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
