"""Rows of all ranks in one tensor."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor


def gather_rows(trainer: pl.Trainer, rows: Tensor, device: torch.device) -> Tensor:
    """Return the rows (n, C) of all ranks, (N, C), on the CPU; ranks may have unequal numbers of rows.

    Args:
        trainer: whose processes take part; every rank must call.
        rows: of this rank, (n, C).
        device: where the collective operation runs.
    """
    if trainer.world_size == 1:
        return rows.cpu()

    def gather(value: Tensor) -> Tensor:
        gathered = trainer.strategy.all_gather(value)
        assert isinstance(gathered, Tensor)
        return gathered

    counts = gather(torch.tensor([len(rows)], device=device)).flatten().tolist()
    # all_gather takes tensors of one shape only, so every rank pads to the largest number of rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = gather(padded.to(device))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).cpu()
