"""Where a callback writes its files."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl


def run_folder(trainer: pl.Trainer, path: str | Path | None = None, inside: str = "") -> Path:
    """Return `path`, or without one the folder `inside` of the run folder.

    Call it on every rank: `trainer.log_dir` is a broadcast, which would deadlock on rank 0 alone.
    """
    return Path(path) if path else Path(trainer.log_dir or trainer.default_root_dir) / inside
