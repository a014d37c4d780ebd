"""What several callbacks do alike: find the run folder, look at a module without changing it, share rows of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.sharding import settle


def run_folder(trainer: pl.Trainer, path: str | Path | None = None, inside: str = "") -> Path:
    """Return `path`, else the run folder or a folder in it; every rank must ask, because `log_dir` is a broadcast."""
    return Path(path) if path else Path(trainer.log_dir or trainer.default_root_dir) / inside


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for all parts; afterwards modes, random state and shards are what they were."""
    with eval_mode(module), isolate_rng():
        yield
    settle(module)


def gather_rows(trainer: pl.Trainer, rows: Tensor, device: torch.device) -> Tensor:
    """Return the rows (n, C) of all ranks, (N, C), on the CPU; ranks may have unequal numbers."""
    if trainer.world_size == 1:
        return rows.cpu()
    counts = _all(trainer, torch.tensor([len(rows)], device=device)).flatten().tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = _all(trainer, padded.to(device))
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).cpu()


def _all(trainer: pl.Trainer, value: Tensor) -> Tensor:
    gathered = trainer.strategy.all_gather(value)
    assert isinstance(gathered, Tensor)
    return gathered
