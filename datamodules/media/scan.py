"""Every image is decoded once before training: bad rows come to light, sizes and content keys are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.checks import BadRow
from pl_prefopt.datamodules.image.decode import decode
from pl_prefopt.datamodules.image.geometry import Size
from pl_prefopt.datamodules.media.records import ImageSource, Picture, Record
from pl_prefopt.datamodules.text.formats import DROP

FORMAT = 1
CHUNK = 64
COLUMNS = ("row", "first", "second", "label", "caption", "digest_0", "digest_1", "size_0", "size_1")


@dataclass(frozen=True, slots=True)
class Inspected:
    """Key of the bytes, size (height, width) and conversions of an image."""

    digest: str
    size: Size
    changed: list[str]


def scan(
    source: ImageSource, *, convert: frozenset[str], on_bad_row: str, limit: int | None, folder: Path, progress: bool
) -> dict[str, Any]:
    """Decode every image once: pairs with content keys and sizes as columns, and counts; kept in `folder`.

    Raises:
        ValueError: a row cannot be used (file, row, field, what was found, what is accepted), or none is left.
    """
    key = [FORMAT, source.stamp(), sorted(convert), on_bad_row, limit]
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(_file_mark(name) == mark for name, mark in found["files"].items()):
            return found
    found = _Scan(source, convert, on_bad_row).run(min(len(source), limit or len(source)), progress)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(found), encoding="utf-8")
    os.replace(part, path)
    return found


class _Scan:
    """The rows of one source, in order, with the decoding spread over threads."""

    def __init__(self, source: ImageSource, convert: frozenset[str], on_bad_row: str) -> None:
        self.source, self.convert, self.on_bad_row = source, convert, on_bad_row
        self.counts: Counter[str] = Counter()
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.numbers: dict[str, list[float]] | None = None
        self.files: dict[str, list[int]] = {}

    def run(self, total: int, progress: bool) -> dict[str, Any]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for at, outcome in self._outcomes(total, pool, progress):
                try:
                    if isinstance(outcome, BadRow):
                        raise outcome
                    self._add(at, *outcome)
                except BadRow as error:
                    if self.on_bad_row == "error":
                        raise error.at(self.source.where(at)) from None
                    self.counts[f"dropped/{error.reason}"] += 1
        self.counts["read"] = total
        if not self.columns["row"]:
            raise ValueError(f"{self.source.source.name}: no row is left; counted: {dict(self.counts)}.")
        return {"columns": self.columns, "numbers": self.numbers, "counts": dict(self.counts), "files": self.files}

    def _outcomes(self, total: int, pool: ThreadPoolExecutor, progress: bool) -> Iterator[tuple[int, Any]]:
        from tqdm.auto import tqdm

        name = Path(self.source.source.name).name
        with tqdm(total=total, desc=f"scanning {name}", unit="row", disable=not progress, leave=False) as bar:
            for start in range(0, total, CHUNK):
                rows = range(start, min(start + CHUNK, total))
                yield from zip(rows, pool.map(self._inspect, self._records(rows)), strict=True)
                bar.update(len(rows))

    def _records(self, rows: range) -> list[Record | BadRow]:
        out: list[Record | BadRow] = []
        for at in rows:
            try:
                out.append(self.source[at])
            except BadRow as error:
                out.append(error)
        return out

    def _inspect(self, record: Record | BadRow) -> tuple[Record, list[Inspected]] | BadRow:
        if isinstance(record, BadRow):
            return record
        try:
            return record, [inspect(p, self.convert) for p in record.pictures]
        except BadRow as error:
            return error

    def _add(self, at: int, record: Record, images: list[Inspected]) -> None:
        refuse_same([i.digest for i in images], record)
        self.numbers = {k: [] for k in record.numbers} if self.numbers is None else self.numbers
        odd = self.numbers.keys() ^ record.numbers.keys()
        if odd:
            raise BadRow("ragged_column", min(odd), "it in some rows only", "a column that all rows have alike")
        for image in images:
            self.counts.update(f"changed/{kind}" for kind in image.changed)
        self.files |= {str(p.path): _file_mark(str(p.path)) for p in record.pictures if p.path is not None}
        for p in record.preferences:
            one, two = images[p.first], images[p.second]
            values = (at, p.first, p.second, p.label, record.caption, one.digest, two.digest, one.size, two.size)
            for name, value in zip(COLUMNS, values, strict=True):
                self.columns[name].append(value)
            for name, value in record.numbers.items():
                self.numbers[name].append(value)


def digest_of(data: bytes) -> str:
    """Return the key of an encoded image."""
    return hashlib.sha256(data).hexdigest()[:32]


def refuse_same(digests: list[str], record: Record) -> None:
    """Raise `BadRow` where two images of a row have the same bytes."""
    if len(set(digests)) < len(digests):
        field = record.pictures[1].field
        raise BadRow("identical", field, "the same bytes as in another image", "different images", DROP)


def inspect(picture: Picture, convert: frozenset[str]) -> Inspected:
    """Decode a picture and keep its key, size and conversions.

    Raises:
        BadRow: it cannot be used.
    """
    data = picture.read()
    image, changed = decode(data, picture.field, convert)
    return Inspected(digest_of(data), (image.height, image.width), changed)


def _file_mark(name: str) -> list[int]:
    try:
        stat = os.stat(name)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
