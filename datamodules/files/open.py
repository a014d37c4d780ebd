"""From what a user writes (a path, a folder, a name, a list of them) to a source of rows."""

from __future__ import annotations

import hashlib
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from pl_prefopt.datamodules.files.arrow import ArrowSource, ParquetStream, StreamSource, open_parquet, open_saved
from pl_prefopt.datamodules.files.readers import JsonlSource, Row, Source, TableSource
from pl_prefopt.utilities.rows import abbreviate
from pl_prefopt.utilities.suggestions import did_you_mean

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
STAGE_WORDS = {"train": {"train"}, "val": {"val", "valid", "validation", "dev", "eval"}, "test": {"test"}}


class JoinedSource(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: list[Source]) -> None:
        self._parts = parts
        self.name = ", ".join(part.name for part in parts)
        self._ends = super().ends

    @property
    def parts(self) -> list[Source]:
        """The sources, in order."""
        return self._parts

    @property
    def ends(self) -> list[int]:
        """Number of rows up to and including each part."""
        return self._ends

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the part that holds row `index`, and its number there."""
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Row:
        part, row = self.locate(index)
        return part[row]

    def iterate(self, start: int) -> Iterator[Row]:
        """Yield rows from `start` on."""
        before = 0
        for part in self._parts:
            if start < before + len(part):
                yield from part.iterate(max(0, start - before))
            before += len(part)

    def where(self, index: int) -> str:
        """Return file and row inside the part."""
        part, row = self.locate(index)
        return part.where(row)

    def digest(self) -> str:
        """Return a key of all parts in order."""
        return hashlib.sha256(" ".join(part.digest() for part in self._parts).encode()).hexdigest()


def open_source(
    spec: str | list[str], argument: str = "train", *, streaming: bool = False, cache: Path | None = None
) -> Source:
    """Open a file (JSONL, JSON list, Parquet, CSV, TSV), a folder, a hub name, or a list of these.

    A folder is one of `datasets.save_to_disk`, or one with data files, read in the order of their names; where names
    say train, val or test, those of the stage that asks. A hub name may end in a split: "org/name:train_prefs".

    Args:
        spec: what to open.
        argument: name of the argument for messages, and of the stage that asks, for example "train" or "val/film".
        streaming: whether rows are read in large blocks, so that nothing should be written to the disk for them.
        cache: the data cache, for formats that have to be converted; None takes that of `cache_folder`.

    Raises:
        ValueError: nothing is there, the format is unknown, the file is broken or holds no row.
    """
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec or [])
    if not specs:
        raise ValueError(f"{argument} must be a path, a dataset name, or a list of them, got {spec!r}")
    parts = [_open_one(str(s), argument, streaming, cache) for s in specs]
    if len(parts) > 1 and not all(part.seekable for part in parts):
        raise ValueError(f"{argument} must be files, or one dataset of the hub, with streaming, got {specs}")
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open_one(spec: str, argument: str, streaming: bool, cache: Path | None) -> Source:
    path = Path(spec).expanduser()
    kind = _file_kind(path, argument)
    if kind == "folder":
        return _open_folder(path, argument, streaming, cache)
    if kind == "file":
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{argument}: {spec} must end in one of {', '.join(SUFFIXES)}, got {path.suffix!r}")
        if path.suffix == ".parquet":
            return ParquetStream(path) if streaming else open_parquet(path, cache)
        return JsonlSource(path) if path.suffix in (".jsonl", ".ndjson") else TableSource(path)
    if path.suffix in SUFFIXES or path.is_absolute() or spec.startswith(("~", "./", "../")):
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(
            f"{argument} must be an existing file, got {spec!r} (relative paths begin at {Path.cwd().name}/). "
            f"{did_you_mean(path.name, siblings)}".strip()
        )
    return _open_hub(spec, argument, streaming)


def _file_kind(path: Path, argument: str) -> str:
    """Return "folder", "file" or "" where nothing is; refuse what is neither, since reading it might never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return ""
        raise ValueError(
            f"{argument} must be an existing file, got {str(path)!r}, a link to {str(path.readlink())!r}, which does "
            "not exist"
        ) from None
    except (OSError, ValueError) as error:  # a link to itself, a path that is too long, a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{argument} must be an existing file, got {abbreviate(str(path))}: {reason}") from None
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return "folder" if stat.S_ISDIR(mode) else "file"
    raise ValueError(
        f"{argument} must be a regular file, got {str(path)!r}, which is a device, pipe or socket. Write its content "
        "to a file first."
    )


def _open_folder(path: Path, argument: str, streaming: bool, cache: Path | None) -> Source:
    if (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        return open_saved(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ValueError(f"{argument} must be one split of {path}, got all: name the folder {' or '.join(splits)}")
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if not files:
        raise ValueError(
            f"{argument}: folder {path} must hold data files ({', '.join(SUFFIXES)}) or be one of save_to_disk, got "
            "neither"
        )
    matching = [str(file) for file in _of_stage(files, path, argument)]
    return open_source(matching, argument, streaming=streaming, cache=cache)


def _of_stage(files: list[Path], folder: Path, argument: str) -> list[Path]:
    """Where names say train, val or test, take those of the stage that asks, so that no test row is trained on."""
    words = {file: set(re.findall("[a-z]+", str(file.relative_to(folder)).lower())) for file in files}
    asked = STAGE_WORDS.get(argument.split("/")[0])
    if asked is None or not any(stage & named for stage in STAGE_WORDS.values() for named in words.values()):
        return files
    matching = [file for file in files if asked & words[file]]
    if not matching:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{argument}: folder {folder} must hold a file for it, got {names}. Name one of them.")
    return matching


def _open_hub(spec: str, argument: str, streaming: bool) -> Source:
    import datasets

    name, _, split = spec.partition(":")
    try:
        dataset = datasets.load_dataset(name, split=split or argument.split("/")[0], streaming=streaming)
    except Exception as error:
        message = (str(error).splitlines() or ["no message"])[0]
        raise ValueError(
            f"{argument} must be an existing path, or 'organisation/name:split' of a reachable dataset, got {spec!r}: "
            f"no file or folder, and loading it as a dataset failed ({type(error).__name__}: {message})"
        ) from None
    if isinstance(dataset, datasets.IterableDataset):
        return StreamSource(dataset, spec)
    assert isinstance(dataset, datasets.Dataset)
    return ArrowSource(dataset, spec)
