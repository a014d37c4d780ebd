"""Checkpoint files that are complete, on the disk, and checked before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.serialization import get_crc32_options, set_crc32_options

from pl_prefopt.utilities.files import write_atomic


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically where they belong and verified when they are loaded.

    A checkpoint is written to a temporary file in its own folder, synchronized with the disk and renamed; Lightning
    writes to the folder for temporary files of the system, which may be another filesystem. `torch.save` stores a
    CRC-32 of every record, which `torch.load` does not read; here a file whose records do not fit them is refused.
    Addresses of remote storage ("s3://...") are left to Lightning.

    Every `TrainableCheckpoints` module uses it unless the Trainer was given a `CheckpointIO` of another class. For
    other modules: `Trainer(plugins=[CheckedCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically."""
        if storage_options is not None or is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        computes_crc32 = get_crc32_options()
        set_crc32_options(True)
        try:
            write_atomic(Path(path), lambda temporary: torch.save(checkpoint, temporary), durable=True)
        finally:
            set_crc32_options(computes_crc32)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            ValueError: the file is damaged; the message names the newest intact checkpoint of its folder.
        """
        check_intact(path)
        return super().load_checkpoint(path, *args, **kwargs)


def is_remote(path: str | Path) -> bool:
    """Whether a path is the address of another storage than the local filesystem."""
    return "://" in str(path)


def check_intact(path: str | Path) -> None:
    """Compare the records of a checkpoint file with their checksums.

    Raises:
        ValueError: the file is damaged; the message names the newest intact checkpoint of its folder.
    """
    file = Path(path)
    if is_remote(path) or not file.is_file() or (damage := find_damage(file)) is None:
        return  # Lightning says what is missing, and checkpoints of sharded models are folders
    newest = newest_intact(file.parent, besides=file)
    advice = f"Resume from {newest}, the newest intact checkpoint" if newest else "There is no intact checkpoint"
    raise ValueError(f"checkpoint {file} must be an intact file, got {damage}. {advice} in this folder.")


def find_damage(file: Path) -> str | None:
    """What is wrong with a file that `torch.save` wrote; None if it is intact."""
    try:
        with zipfile.ZipFile(file) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        return f"a file of {file.stat().st_size} bytes that is cut off or overwritten ({error})"
    return None if record is None else f"record {record} with another content than its checksum says"


def newest_intact(folder: Path, besides: Path) -> Path | None:
    """The last written checkpoint of a folder that is intact."""
    others = [f for f in folder.glob("*.ckpt") if f.is_file() and not f.samefile(besides)]
    candidates = sorted(others, key=lambda f: f.stat().st_mtime, reverse=True)
    return next((f for f in candidates if find_damage(f) is None), None)
