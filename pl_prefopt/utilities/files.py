"""Files that are complete or absent, work that is split into files, and one progress bar."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
PACKAGE = "package://"
"""Beginning of a name such as `package://pl_prefopt/demo/bases/text`: a folder inside an installed Python package."""


def resolve_package(name: str) -> str:
    """Return the path of the folder that `package://<package>/<path>` names; every other name is returned unchanged.

    Raises:
        ValueError: there is no such package or no such folder in it.
    """
    if not name.startswith(PACKAGE):
        return name
    package, _, path = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package else None
    roots = [] if spec is None else list(spec.submodule_search_locations or ())
    folders = [Path(root) / path for root in roots]
    if not any(folder.is_dir() for folder in folders):
        raise ValueError(
            f"{PACKAGE} must be followed by an installed package and a folder in it, got {name!r}. Install the "
            "package, or give a folder or a hub name"
        )
    return str(next(folder for folder in folders if folder.is_dir()))


TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp\w*")
DAY = 24 * 3600
_swept: set[Path] = set()


def write_atomic(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> Path:
    """Create a file atomically: `write` fills a temporary file beside it, which is then renamed.

    A reader sees the old content, the new content or no file, never a part. The temporary file is removed when `write`
    fails; those that killed processes left in the folder are removed by the first write of this process.

    Args:
        path: the file; its folder is created when absent.
        write: called with the temporary path.
        durable: return only when the file is on the disk, so that it survives a loss of power.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(temporary_name(path.name))
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~current_umask())  # safetensors makes files that only their owner may read
        if durable:
            synchronize(temporary)
        os.replace(temporary, path)
        if durable:
            synchronize(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def temporary_name(name: str) -> str:
    """Name of the temporary file or folder of `name`: it says which process of which computer writes it."""
    host = re.sub(r"[^\w-]", "_", socket.gethostname())
    return f".{name}.{host}-{os.getpid()}.tmp"


def synchronize(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network filesystems cannot synchronize folders
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove temporary files of processes that are gone, once per folder and process.

    Whether a process of another computer lives is unknown; its files are removed when they are a day old.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    for entry in folder.glob(".*.tmp*"):
        match = TEMPORARY.fullmatch(entry.name)
        if match and _abandoned(entry, match["host"], int(match["pid"])):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _abandoned(entry: Path, host: str, pid: int) -> bool:
    if not temporary_name("").startswith(f"..{host}-"):
        try:
            return time.time() - entry.stat().st_mtime > DAY
        except FileNotFoundError:
            return False
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically; return the path."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object, *, indent: int | None = None) -> Path:
    """Write a value as JSON atomically; return the path."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=indent))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows as JSON lines atomically; return the path."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    return write_atomic(path, write)


def create_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Create a folder atomically: `write` fills a temporary folder, which is then renamed.

    Nothing happens when the folder exists. Of two processes that create it at once, the first one's folder stays.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_name(folder.name)))
    try:
        write(temporary)
        os.chmod(temporary, 0o777 & ~current_umask())  # mkdtemp makes folders that only their owner may read
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and folder.is_dir()):
            raise
    return folder


def current_umask() -> int:
    """Permission bits that the process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class Parts:
    """Items 0 to total - 1 in consecutive parts, one file each; a part is finished when its file exists.

    Processes that share the folder share the work: each computes its own missing parts, all wait, all read.

    Args:
        folder: where the files lie.
        total: number of items, >= 0.
        size: items per part, >= 1.
        name: file name of a part, with `{part}` where its number stands.
    """

    folder: Path
    total: int
    size: int
    name: str = "{part:06d}.safetensors"

    def __len__(self) -> int:
        """Number of parts."""
        return -(-self.total // self.size)

    def items(self, part: int) -> range:
        """Item numbers of a part."""
        return range(part * self.size, min((part + 1) * self.size, self.total))

    def file(self, part: int) -> Path:
        """File of a part."""
        return self.folder / self.name.format(part=part)

    def files(self) -> list[Path]:
        """Files of all parts, in order."""
        return [self.file(part) for part in range(len(self))]

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Unfinished parts of this rank: those whose number is `rank` modulo `world_size`."""
        return [part for part in range(rank, len(self), world_size) if not self.file(part).exists()]


def track(
    items: Sequence[Item],
    title: str,
    *,
    unit: str = "row",
    size: Callable[[Item], int] = lambda item: 1,
    hidden: bool = False,
) -> Iterator[Item]:
    """Yield the items with a progress bar that counts `size(item)` units each; no bar for nothing to do."""
    from tqdm.auto import tqdm

    with tqdm(
        total=sum(map(size, items)), desc=title, unit=unit, disable=hidden or not items, leave=False, mininterval=0.5
    ) as bar:
        for item in items:
            yield item
            bar.update(size(item))
