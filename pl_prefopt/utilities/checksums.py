"""Checksums of the files of a folder, written beside them and compared before they are read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from pl_prefopt.utilities.files import write_json

NAME = "checksums.json"


def write_checksums(folder: Path) -> Path:
    """Write the CRC-32 of every file that lies directly in a folder to `checksums.json`; return its path."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != NAME and not f.name.startswith("."))
    return write_json(folder / NAME, {file.name: file_crc32(file) for file in files}, indent=2)


def check_folder(folder: str | Path) -> None:
    """Compare the files of a folder with their checksums, if it has some; other folders and names are not looked at.

    Raises:
        ValueError: a file is missing or has changed.
    """
    record = Path(folder) / NAME
    if not record.is_file():
        return
    for name, expected in json.loads(record.read_text(encoding="utf-8")).items():
        file = record.parent / name
        found = file_crc32(file) if file.is_file() else "no file"
        if found != expected:
            raise ValueError(
                f"{file} must have the checksum {expected} of {record.name}, got {found}: it is damaged or was "
                f"changed. Use another export, or delete {record.name} if the change was intended."
            )


def check_complete(name: str, network: object, missing: Iterable[str], new_layers: tuple[str, ...] = ()) -> None:
    """Refuse pretrained weights that lack some of a network's, which transformers and diffusers draw at random.

    Args:
        name: of the pretrained weights.
        network: what was built.
        missing: its weights that were not in the files.
        new_layers: beginnings of names that may be missing.

    Raises:
        ValueError: naming the first of them.
    """
    absent = sorted(key for key in missing if not key.startswith(new_layers))
    if absent:
        raise ValueError(
            f"pretrained {name} must hold all weights of {type(network).__name__}, but lacks {len(absent)} of them "
            f"({', '.join(absent[:3])}). Is a file damaged, or the model of another kind?"
        )


def file_crc32(file: Path) -> str:
    """CRC-32 of the content of a file, which costs about a second per GB, as hexadecimal digits."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
