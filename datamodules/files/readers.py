"""Text files as random-access rows: of JSONL nothing is kept in memory but where the lines begin."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
        refuse_empty(self)

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
        refuse_empty(self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return _object(self._rows[index], self.where(index))


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
        raise ValueError(f"{path}, after line {reader.line_num}: not valid CSV ({error}).") from None
    return rows


def _plain(cell: str) -> Any:
    """A JSON list of turns becomes one; all else stays text, also an answer that happens to be JSON."""
    if not cell.startswith("[{"):
        return cell
    try:
        turns = json.loads(cell)
    except json.JSONDecodeError:
        return cell
    return turns if all(isinstance(t, dict) and t.keys() & {"role", "from"} for t in turns) else cell


def refuse_empty(source: Source) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.name}: holds no row; accepted: at least one.")


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
