"""Layouts of image preferences, turned into one: a caption, pictures, and which of them is better than which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.arrow import ArrowSource
from pl_prefopt.datamodules.files.checks import BadRow, inside, nearest, number, resolved, shown
from pl_prefopt.datamodules.files.open import JoinedSource, open_source
from pl_prefopt.datamodules.files.readers import Row, Source
from pl_prefopt.datamodules.text.formats import DROP, PAIR_NUMBERS, parsed, renamed

COLUMNS = (
    *("caption", "chosen", "rejected", "image_0", "image_1", "label_0", "images", "ranks", "scores"),
    *PAIR_NUMBERS,
)
ALIASES = {
    "caption": ("prompt", "text"),
    "image_0": ("jpg_0",),
    "image_1": ("jpg_1",),
    "images": ("image_path", "file_path"),
    "ranks": ("rank",),
    "scores": ("human_preference",),
}
TIE = 0.5


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of an encoded image, or the file that holds them; `field` is the column it came from."""

    field: str
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
            return self.path.read_bytes()
        except OSError as error:
            found = f"no readable file {self.path.name!r} ({error.strerror})"
            hint = "Paths are looked up from the data file's folder, or from image_folder."
            raise BadRow("missing_image", self.field, found, "an existing image file", hint) from None


Find = Callable[[Any, str], Picture]


@dataclass(frozen=True, slots=True)
class Preference:
    """Picture `first` against picture `second`: `first` is better with probability `label`, 1 or (a tie) .5."""

    first: int
    second: int
    label: float


@dataclass(slots=True)
class Record:
    """One row of a file."""

    caption: str
    pictures: list[Picture]
    preferences: list[Preference]
    numbers: dict[str, float] = field(default_factory=dict)


class ImageSource:
    """Rows of image preferences in any accepted layout.

    Accepted: `caption` + `chosen` + `rejected`; `caption` + `image_0` (`jpg_0`) + `image_1` (`jpg_1`) + `label_0` in
    {0, .5, 1}, as Pick-a-Pic v2; `prompt` + `image_path` + `rank` (lower is better) or `human_preference` (higher is
    better), as HPDv2: every pair of the list, better one first. Images are paths or bytes.

    Args:
        spec: file, folder, hub name or a list of these, as `open_source` takes them.
        argument: name of the argument for messages, for example "train".
        columns: our column name -> the file's.
        image_folder: where relative paths begin; None means the folder of the data file.
        above: how many folders paths may climb from there; 0 keeps them inside.
    """

    def __init__(
        self,
        spec: str | list[str],
        argument: str = "train",
        columns: dict[str, str] | None = None,
        image_folder: str | None = None,
        above: int = 0,
    ) -> None:
        self.source = _undecoded(open_source(spec, argument))
        self.columns = columns or {}
        self.image_folder = image_folder
        self.above = above

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        root = self.root(index)
        boundary = resolved(root).parents[self.above - 1] if self.above else root
        return parse_record(self.source[index], lambda value, name: picture(value, name, root, boundary), self.columns)

    def where(self, index: int) -> str:
        """Return file and row."""
        return self.source.where(index)

    def root(self, index: int) -> Path:
        """Return the folder from which the paths of row `index` are looked up."""
        if self.image_folder is not None:
            return Path(self.image_folder).expanduser()
        part = self.source.locate(index)[0] if isinstance(self.source, JoinedSource) else self.source
        place = Path(part.name).expanduser()
        return place if place.is_dir() else place.parent

    @property
    def ends(self) -> list[int]:
        """Number of rows up to and with each of the joined files."""
        return self.source.ends if isinstance(self.source, JoinedSource) else [len(self.source)]

    def stamp(self) -> str:
        """Return a key that changes with the data files and the columns, without reading large files."""
        parts = self.source.parts if isinstance(self.source, JoinedSource) else [self.source]
        marks = [*map(_mark, parts), sorted(self.columns.items()), self.image_folder]
        return hashlib.sha256(repr(marks).encode()).hexdigest()


def parse_record(raw: Row, find: Find, columns: dict[str, str] | None = None) -> Record:
    """Read one raw row; images stay unread. `find` turns a cell and the name of its column into a picture.

    Raises:
        BadRow: a column is missing or holds what cannot be used.
    """
    row = _with_aliases(renamed(raw, columns or {}))
    read = next((reader for key, reader in LAYOUTS if row.get(key) is not None), None)
    if read is None:
        raise _missing("chosen", row, "Name your columns with columns: {image_0: ..., image_1: ..., label_0: ...}.")
    caption = _caption(row)
    pictures, preferences = read(row, find)
    given = {k: parsed(row[k]) for k in PAIR_NUMBERS if row.get(k) is not None}
    numbers = {k: number(k, v, low=PAIR_NUMBERS[k][0], high=PAIR_NUMBERS[k][1]) for k, v in given.items()}
    return Record(caption, pictures, preferences, numbers)


def _caption(row: Row) -> str:
    caption = row.get("caption")
    if caption is None:
        raise _missing("caption", row, "Name it with columns: {caption: ...}.", reason="missing_caption")
    if not isinstance(caption, str) or not caption.strip():
        raise BadRow("missing_caption", "caption", shown(caption), "text with at least one visible character", DROP)
    return caption


def _read_chosen(row: Row, find: Find) -> tuple[list[Picture], list[Preference]]:
    if row.get("rejected") is None:
        raise _missing("rejected", row)
    pictures = [find(row[k], k) for k in ("chosen", "rejected")]
    return _distinct(pictures), [Preference(0, 1, 1.0)]


def _read_labelled(row: Row, find: Find) -> tuple[list[Picture], list[Preference]]:
    for name in ("image_1", "label_0"):
        if row.get(name) is None:
            raise _missing(name, row)
    label = parsed(row["label_0"])
    if isinstance(label, bool) or label not in (0, TIE, 1):
        hint = "1 means that image 0 is better, 0.5 a tie. " + DROP
        raise BadRow("bad_label", "label_0", shown(row["label_0"]), "0, 0.5 or 1", hint)
    if row.get("label_1") is not None and parsed(row["label_1"]) != 1 - label:
        raise BadRow("bad_label", "label_1", shown(row["label_1"]), f"{1 - label}, as label_0 is {label}", DROP)
    pictures = _distinct([find(row[k], k) for k in ("image_0", "image_1")])
    return pictures, [Preference(1, 0, 1.0) if label == 0 else Preference(0, 1, float(label))]


def _read_ranked(row: Row, find: Find) -> tuple[list[Picture], list[Preference]]:
    found = parsed(row["images"])
    if not isinstance(found, list) or len(found) < 2:
        raise BadRow("bad_type", "images", shown(found), "a list of at least two images")
    key = "ranks" if row.get("ranks") is not None else "scores"
    if row.get(key) is None:
        raise _missing("ranks", row, "Name it with columns: {ranks: ...} (lower is better) or {scores: ...}.")
    values = parsed(row[key])
    if not isinstance(values, list) or len(values) != len(found):
        raise BadRow("bad_length", key, shown(values), f"a list of {len(found)} numbers, one per image")
    sign = -1.0 if key == "ranks" else 1.0
    merits = [sign * number(f"{key}[{i}]", v) for i, v in enumerate(values)]
    pictures = _distinct([find(v, f"images[{i}]") for i, v in enumerate(found)])
    return pictures, [_preference(i, j, merits) for i, j in combinations(range(len(found)), 2)]


LAYOUTS: tuple[tuple[str, Callable[[Row, Find], tuple[list[Picture], list[Preference]]]], ...] = (
    ("images", _read_ranked),
    ("chosen", _read_chosen),
    ("image_0", _read_labelled),
)


def picture(value: Any, name: str, root: Path, boundary: Path | None = None) -> Picture:
    """Return the image of a cell: bytes, {"bytes", "path"} or a path from `root`.

    Raises:
        BadRow: it is none of these, empty, or a path that leads out of `boundary` (None: out of `root`).
    """
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not value:
            raise BadRow("empty_image", name, "0 bytes", "the bytes of an image file", DROP)
        return Picture(name, data=bytes(value))
    if not isinstance(value, str) or not value:
        raise BadRow("bad_type", name, shown(value), "bytes of an image file, or its path", DROP)
    outer = resolved(boundary or root)
    try:
        return Picture(name, path=inside(outer, str(resolved(root).relative_to(outer) / value)))
    except BadRow as error:
        hint = "Set image_folder if they lie elsewhere."
        raise BadRow(error.reason, name, repr(value), error.accepted, hint) from None


def _preference(i: int, j: int, merits: list[float]) -> Preference:
    if merits[i] == merits[j]:
        return Preference(i, j, TIE)
    return Preference(i, j, 1.0) if merits[i] > merits[j] else Preference(j, i, 1.0)


def _distinct(pictures: list[Picture]) -> list[Picture]:
    """Refuse the same file twice in one row; the same bytes in two files are found when they are read."""
    paths = [p.path for p in pictures if p.path is not None]
    twice = next((p for p in pictures if p.path is not None and paths.count(p.path) > 1), None)
    if twice is not None:
        assert twice.path is not None
        raise BadRow("identical", twice.field, f"{twice.path.name!r} twice", "two different images", DROP)
    return pictures


def _with_aliases(row: Row) -> Row:
    found = {
        ours: next((row[n] for n in (ours, *names) if row.get(n) is not None), None) for ours, names in ALIASES.items()
    }
    return row | {k: v for k, v in found.items() if v is not None}


def _missing(name: str, row: Row, hint: str = "", reason: str = "missing_column") -> BadRow:
    known = [k for k, v in row.items() if v is not None]
    return BadRow(
        reason, name, f"only {', '.join(map(repr, known)) or 'nothing'}", "a column of that name",
        hint or nearest(name, known),
    )  # fmt: skip


def _undecoded(source: Source) -> Source:
    if isinstance(source, JoinedSource):
        return JoinedSource([_undecoded(p) for p in source.parts])
    return source.undecoded() if isinstance(source, ArrowSource) else source


def _mark(source: Source) -> str:
    """Path, size and time of a file; the key of any other source."""
    path = Path(source.name)
    if not path.is_file():
        return source.digest()
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
