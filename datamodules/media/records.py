"""Layouts of preferences between media files, turned into one: a caption, files, and which is better than which."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.columns import Numbers, parsed, read_numbers, refuse_reversed, renamed
from pl_prefopt.datamodules.files.open import open_source
from pl_prefopt.datamodules.files.readers import Row, Source
from pl_prefopt.datamodules.media.kind import MediaKind
from pl_prefopt.utilities.digests import json_digest
from pl_prefopt.utilities.rows import (
    DROP_HINT,
    BadRow,
    abbreviate,
    encodable,
    inside,
    is_visible,
    missing_column,
    number,
    resolved,
)

TIE = 0.5


@dataclass(frozen=True, slots=True)
class MediaFile:
    """The encoded bytes of an image, a sound, ..., or the file that holds them.

    Args:
        field: the column it came from.
        item: what it is, for messages.
        path: the file.
        data: the bytes, where the cell held them.
    """

    field: str
    item: str
    path: Path | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            BadRow: the file is missing or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            return read_regular(self.path)
        except OSError as error:
            found = f"no readable file {abbreviate(self.path.name)} ({error.strerror})"
            hint = f"Paths begin at the data file's folder, or at {self.item}_folder."
            raise BadRow(f"missing_{self.item}", self.field, found, f"an existing file ({self.item})", hint) from None


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device, which might never end, is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe is opened without a writer
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "no regular file")
        return file.read()


@dataclass(frozen=True, slots=True)
class Preference:
    """File `first` against file `second`: `first` is better with probability `label`, 1 or (a tie) .5."""

    first: int
    second: int
    label: float


@dataclass(slots=True)
class Record:
    """One row of a data file."""

    caption: str
    files: list[MediaFile]
    preferences: list[Preference]
    numbers: Numbers = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)

    def numbers_of(self, preference: Preference) -> Numbers:
        """Return the data columns of one pair: numbers of the row, and [first, second] of those per file."""
        pair = (preference.first, preference.second)
        return {k: [v[i] for i in pair] if isinstance(v, list) else v for k, v in self.numbers.items()}


FindFile = Callable[[object, str], MediaFile]
"""(cell, column) -> the file that the cell names."""


class MediaSource:
    """Rows of preferences between media files, in any accepted layout.

    Accepted, for images: `caption` + `chosen` + `rejected`; `caption` + `image_0` + `image_1` + `label_0` in
    {0, .5, 1}, as Pick-a-Pic v2; `caption` + `images` + `ranks` (lower is better) or `scores` (higher is better), as
    HPDv2: every pair of the list, better one first. Files are paths or bytes.

    Args:
        source: raw rows.
        kind: what the files are.
        columns: our column name -> the file's.
        folder: where relative paths begin; None means the folder of the data file.
        above: how many folders paths may climb from there; 0 keeps them inside.
    """

    def __init__(
        self,
        source: Source,
        kind: MediaKind[Any],
        columns: Mapping[str, str] | None = None,
        folder: str | None = None,
        above: int = 0,
    ) -> None:
        self.source, self.kind, self.columns, self.folder, self.above = source, kind, columns or {}, folder, above

    @classmethod
    def open(cls, spec: str | list[str], kind: MediaKind[Any], argument: str = "train", **options: Any) -> MediaSource:
        """Open a file, folder, hub name or a list of these, as `open_source` takes them."""
        return cls(open_source(spec, argument), kind, **options)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        root = self.root(index)
        boundary = resolved(root).parents[self.above - 1] if self.above else root

        def find(cell: object, column: str) -> MediaFile:
            return media_file(cell, column, self.kind.item, root, boundary)

        return parse_record(self.source[index], self.kind, find, self.columns)

    def where(self, index: int) -> str:
        """Return file and row."""
        return self.source.where(index)

    def root(self, index: int) -> Path:
        """Return the folder from which the paths of row `index` are looked up."""
        if self.folder is not None:
            return Path(self.folder).expanduser()
        file = Path(self.source.locate(index)[0].name).expanduser()
        return file if file.is_dir() else file.parent

    def stamp(self) -> str:
        """Return a key that changes with the data files and the columns, without reading large files."""
        return json_digest([[_stamp(p) for p in self.source.parts], sorted(self.columns.items()), self.folder])


def _stamp(source: Source) -> str:
    """Path, size and time of a file; the key of any other source."""
    path = Path(source.name)
    if not path.is_file():
        return source.digest()
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def media_file(cell: object, column: str, item: str, root: Path, boundary: Path | None = None) -> MediaFile:
    """Return the file of a cell: bytes, {"bytes", "path"} or a path from `root`.

    Raises:
        BadRow: it is none of these, empty, or a path that leads out of `boundary` (None: out of `root`).
    """
    if isinstance(cell, dict) and ("bytes" in cell or "path" in cell):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, (bytes, bytearray, memoryview)):
        if not cell:
            raise BadRow(f"empty_{item}", column, "0 bytes", f"the bytes of a file ({item})", DROP_HINT)
        return MediaFile(column, item, data=bytes(cell))
    if not isinstance(cell, str) or not cell:
        raise BadRow("bad_type", column, abbreviate(cell), f"the bytes of a file ({item}), or its path", DROP_HINT)
    outer = resolved(boundary or root)
    try:
        return MediaFile(column, item, path=inside(outer, str(resolved(root).relative_to(outer) / cell)))
    except BadRow as error:
        hint = f"Set {item}_folder if the files lie elsewhere."
        raise BadRow(error.reason, column, error.found, error.accepted, hint) from None


def parse_record(raw: Row, kind: MediaKind[Any], find: FindFile, columns: Mapping[str, str] | None = None) -> Record:
    """Read one raw row; files stay unread.

    Raises:
        BadRow: a column is missing or holds what cannot be used.
    """
    row = renamed(raw, columns or {})
    for ours, theirs in kind.aliases.items():
        value = next((row[name] for name in (ours, *theirs) if row.get(name) is not None), None)
        if value is not None:
            row[ours] = value
    present = [name for name, value in row.items() if value is not None]
    layouts = {kind.several: _read_ranked, "chosen": _read_chosen, kind.pair[0]: _read_labelled}
    read = next((reader for column, reader in layouts.items() if row.get(column) is not None), None)
    if read is None:
        hint = f"Name your columns with columns: {{{kind.pair[0]}: ..., {kind.pair[1]}: ..., label_0: ...}}."
        raise missing_column("chosen", present, hint)
    caption = row.get("caption")
    if caption is None:
        raise missing_column("caption", present, "Name it with columns: {caption: ...}.", reason="missing_caption")
    if not isinstance(caption, str) or not is_visible(caption):
        accepted = "text with at least one visible character"
        raise BadRow("missing_caption", "caption", abbreviate(caption), accepted, DROP_HINT)
    encodable("caption", caption)
    if read is not _read_ranked:
        refuse_reversed(row)
    files, preferences = read({name: row[name] for name in present}, kind, find)
    # in a list, `ranks` says which file is better; elsewhere it is a data column
    numbers = read_numbers(row, len(files), kind.item, skip=("ranks",) if read is _read_ranked else ())
    names = {*kind.columns, *(name for theirs in kind.aliases.values() for name in theirs), *(columns or {}).values()}
    return Record(caption, _distinct(files, kind.item), preferences, numbers, set(raw) - names)


def _read_chosen(row: Row, kind: MediaKind[Any], find: FindFile) -> tuple[list[MediaFile], list[Preference]]:
    if "rejected" not in row:
        raise missing_column("rejected", row)
    return [find(row[name], name) for name in ("chosen", "rejected")], [Preference(0, 1, 1.0)]


def _read_labelled(row: Row, kind: MediaKind[Any], find: FindFile) -> tuple[list[MediaFile], list[Preference]]:
    for name in (kind.pair[1], "label_0"):
        if name not in row:
            raise missing_column(name, row)
    label = parsed(row["label_0"])
    if isinstance(label, bool) or label not in (0, TIE, 1):
        hint = f"1 means that {kind.item} 0 is better, 0.5 a tie. " + DROP_HINT
        raise BadRow("bad_label", "label_0", abbreviate(row["label_0"]), "0, 0.5 or 1", hint)
    if "label_1" in row and parsed(row["label_1"]) != 1 - label:
        accepted = f"{1 - label}, as label_0 is {label}"
        raise BadRow("bad_label", "label_1", abbreviate(row["label_1"]), accepted, DROP_HINT)
    files = [find(row[name], name) for name in kind.pair]
    return files, [Preference(1, 0, 1.0) if label == 0 else Preference(0, 1, float(label))]


def _read_ranked(row: Row, kind: MediaKind[Any], find: FindFile) -> tuple[list[MediaFile], list[Preference]]:
    cells = parsed(row[kind.several])
    if not isinstance(cells, list) or len(cells) < 2:
        raise BadRow("bad_type", kind.several, abbreviate(cells), f"a list of at least two {kind.several}")
    key = "ranks" if "ranks" in row else "scores"
    if "ranks" in row and "scores" in row:
        _refuse_conflict(parsed(row["ranks"]), parsed(row["scores"]))
    if key not in row:
        hint = "Name it with columns: {ranks: ...} (lower is better) or {scores: ...}."
        raise missing_column("ranks", row, hint)
    values = parsed(row[key])
    if not isinstance(values, list) or len(values) != len(cells):
        raise BadRow("bad_length", key, abbreviate(values), f"a list of {len(cells)} numbers, one per {kind.item}")
    sign = -1.0 if key == "ranks" else 1.0
    merits = [sign * number(f"{key}[{i}]", value) for i, value in enumerate(values)]
    files = [find(cell, f"{kind.several}[{i}]") for i, cell in enumerate(cells)]
    return files, [_preference(i, j, merits) for i, j in combinations(range(len(cells)), 2)]


def _refuse_conflict(ranks: object, scores: object) -> None:
    """Refuse ranks (lower is better) and scores (higher is better) that order two files differently."""
    if not isinstance(ranks, list) or not isinstance(scores, list) or len(ranks) != len(scores):
        raise BadRow("bad_length", "scores", abbreviate(scores), "a list as long as 'ranks', or absent")
    pairs = enumerate(zip(ranks, scores, strict=True))
    values = [(number(f"ranks[{i}]", rank), number(f"scores[{i}]", score)) for i, (rank, score) in pairs]
    if any((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in combinations(values, 2)):
        found = f"{abbreviate(scores)} beside 'ranks' {abbreviate(ranks)}"
        raise BadRow("conflict", "scores", found, "in agreement with 'ranks'", "Leave the column out that is wrong.")


def _preference(i: int, j: int, merits: list[float]) -> Preference:
    if merits[i] == merits[j]:
        return Preference(i, j, TIE)
    return Preference(i, j, 1.0) if merits[i] > merits[j] else Preference(j, i, 1.0)


def _distinct(files: list[MediaFile], item: str) -> list[MediaFile]:
    """Refuse the same path twice in one row; the same bytes in two files are noticed when they are read."""
    paths: set[Path] = set()
    for file in files:
        if file.path is not None and file.path in paths:
            found = f"{file.path.name!r} twice"
            raise BadRow("identical", file.field, found, f"another {item} than the others of the row", DROP_HINT)
        paths |= {file.path} if file.path is not None else set()
    return files
