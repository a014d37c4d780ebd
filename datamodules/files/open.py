"""From what a user writes (a path, a folder, a name, a list of them) to a source of rows."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from pl_prefopt.datamodules.files.arrow import ArrowSource, ParquetSource, StreamSource
from pl_prefopt.datamodules.files.checks import nearest
from pl_prefopt.datamodules.files.readers import JsonlSource, Row, Source, TableSource

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
STAGE_WORDS = {"train": {"train"}, "val": {"val", "valid", "validation", "dev", "eval"}, "test": {"test"}}


class JoinedSource(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: list[Source]) -> None:
        self.parts = parts
        self.name = ", ".join(p.name for p in parts)
        self.ends = [sum(len(p) for p in parts[: i + 1]) for i in range(len(parts))]

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the part that holds row `index`, and its number there."""
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Row:
        part, at = self.locate(index)
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
        part, at = self.locate(index)
        return part.where(at)

    def digest(self) -> str:
        """Return a key of all parts in order."""
        return hashlib.sha256(" ".join(p.digest() for p in self.parts).encode()).hexdigest()


def open_source(spec: str | list[str], argument: str = "train", *, streaming: bool = False) -> Source:
    """Open a file (JSONL, JSON list, Parquet, CSV, TSV), a folder, a hub name, or a list of these.

    A folder is one of `datasets.save_to_disk`, or one with data files, read in the order of their names; where names
    say train, val or test, those of the stage that asks. A hub name may end in a split: "org/name:train_prefs".

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
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(
            f"{argument}: folder {path} holds no data file; accepted: {', '.join(SUFFIXES)}, or save_to_disk's."
        )
    return open_source([str(f) for f in _of_stage(files, path, argument)], argument)


def _of_stage(files: list[Path], folder: Path, argument: str) -> list[Path]:
    """Where names say train, val or test, take those of the stage that asks, so that no test row is trained on."""
    marks = {f: set(re.findall("[a-z]+", str(f.relative_to(folder)).lower())) for f in files}
    if not any(words & marked for words in STAGE_WORDS.values() for marked in marks.values()):
        return files
    chosen = [f for f in files if STAGE_WORDS[argument.split("/")[0]] & marks[f]]
    if not chosen:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"{argument}: folder {folder} holds no file for it among {names}; accepted: name one of them.")
    return chosen


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
