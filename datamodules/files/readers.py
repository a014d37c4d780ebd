"""Text files as random-access rows.

These formats have readers of their own, although `datasets` reads them too: its Arrow tables have one type per column,
so that a JSON column of text in some rows and of turns in others is refused, missing fields of tools are filled with
None, and a short CSV row is padded without a word. And no reader of it knows the line of a row that is at fault.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Source:
    """Random-access raw rows."""

    name: str
    """Path or dataset name."""
    seekable = True
    """Whether rows can be read in any order."""

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
        """Return a key of the content, not of the name or folder."""
        return file_digest(Path(self.name))

    @property
    def parts(self) -> list[Source]:
        """The sources that this one joins; itself where it joins none."""
        return [self]

    @property
    def ends(self) -> list[int]:
        """Number of rows up to and including each part."""
        return list(accumulate(map(len, self.parts)))

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the part that holds row `index`, and its number there."""
        return self, index


class JsonlSource(Source):
    """One JSON object a line.

    Only the offsets and numbers of the lines (16 bytes a row) stay in memory; errors name the line.
    """

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
            row = _json(text)
        except ValueError as error:
            raise ValueError(f"{where} must be one JSON object, got {_json_error(error, one_line=True)}.") from None
        return _object(row, where)


class TableSource(Source):
    """A JSON list, or CSV, held in memory as a whole."""

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
            f"{where} must be UTF-8 text, got byte 0x{byte:02x} at position {error.start}. Convert the file, for "
            "example with: iconv -f LATIN1 -t UTF-8."
        ) from None


def _json(text: str) -> Any:
    """Parse JSON, refusing what Python's parser takes in silence or by a crash: a key twice, endless nesting."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("lists or objects that are nested too deeply") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return row


def _json_error(error: ValueError, *, one_line: bool = False) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    line = "" if one_line else f"line {error.lineno}, "
    return f"an error at {line}column {error.colno} ({error.msg})"


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with named fields, got a {type(row).__name__}.")
    return row


def _json_list(text: str, name: str) -> list[Any]:
    try:
        rows = _json(text)
    except ValueError as error:
        raise ValueError(
            f"{name} must be one JSON list of objects, got {_json_error(error)}. A file with one object a line must "
            "end in .jsonl."
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{name} must be one JSON list of objects, got a {type(rows).__name__} at the top.")
    return rows


def _csv_rows(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    rows: list[Row] = []
    try:
        _check_header(list(reader.fieldnames or ()), path)
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                raise ValueError(
                    f"{path}, row {len(rows) + 1} must have {width} fields, as the header, got another number."
                )
            rows.append({k: _plain(v) for k, v in row.items()})
    except csv.Error as error:
        raise ValueError(f"{path} must be valid CSV, got an error after line {reader.line_num} ({error}).") from None
    return rows


def _check_header(names: list[str], path: Path) -> None:
    """Refuse a column that is there twice, and a file whose cells are separated by another character."""
    refuse_repeated(names, str(path))
    if len(names) == 1 and any(separator in names[0] for separator in ",;|\t"):
        expected = "tabs" if path.suffix == ".tsv" else "commas"
        raise ValueError(
            f"{path} must have columns separated by {expected}, as {path.suffix} says, got the one column "
            f"{names[0]!r}. Rename the file, or write it with {expected}."
        )


def refuse_repeated(names: Sequence[str], file: str) -> None:
    """Raise ValueError for a table with two columns of one name, of which only one would be read."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{file} must have one column of each name, got {', '.join(map(repr, repeated))} repeatedly.")


def _plain(cell: str) -> Any:
    """Parse a cell that holds a list of turns; all else stays text, also an answer that happens to be JSON."""
    if not cell.startswith("[{"):
        return cell
    try:
        turns = _json(cell)
    except ValueError:
        return cell
    return turns if all(isinstance(t, dict) and t.keys() & {"role", "from"} for t in turns) else cell


def refuse_empty(source: Source) -> None:
    """Raise ValueError for a source without rows."""
    if len(source) == 0:
        raise ValueError(f"{source.name} must hold at least one row, got none.")


def same_content(a: Source, b: Source) -> bool:
    """Whether two sources hold the same; files of different sizes are not read for it."""
    files = Path(a.name), Path(b.name)
    if all(map(Path.is_file, files)):
        return files[0].samefile(files[1]) or (
            files[0].stat().st_size == files[1].stat().st_size and file_digest(files[0]) == file_digest(files[1])
        )
    return a.name == b.name and a.digest() == b.digest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
