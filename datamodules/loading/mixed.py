"""Batches drawn from named sources, whose weights a callback may change between optimizer steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.mixtures.sources import SourceSchedule


class SourceBatches:
    """Draw the rows of each optimizer step from sources, the same on every rank, and hand out this rank's share.

    Two ranks with batch b see in every step the rows that one rank with batch 2b sees. An epoch has as many steps as
    the rows of all sources fill; how often a row comes in it depends on the weights. Batches are drawn when they are
    asked for, so that new weights count from the next step on.

    Args:
        sources: name -> row ids.
        batch_size: rows per rank and micro-batch.
        share: this rank and the number of ranks.
        accumulate: micro-batches per optimizer step.
        seed: key of all draws.

    Raises:
        ValueError: the rows do not fill one optimizer step, or a source without rows.
    """

    left_out = 0

    def __init__(
        self, sources: Mapping[str, np.ndarray], batch_size: int, share: Share, *, accumulate: int = 1, seed: int = 0
    ) -> None:
        self.share, self.accumulate, self.batch_size = share, accumulate, batch_size
        self.global_batch = batch_size * share.world_size
        self.schedule = SourceSchedule(sources, self.global_batch * accumulate, seed)
        self.rows = sum(map(len, sources.values()))
        if not len(self):
            raise ValueError(
                f"train must hold at least one optimizer step of {self.schedule.size} rows (batch_size {batch_size} x "
                f"{share.world_size} devices x {accumulate} accumulated batches), got {self.rows}. Lower batch_size or "
                "accumulate_grad_batches, or add rows."
            )

    def __len__(self) -> int:
        """Number of batches of this rank in one epoch."""
        return self.rows // self.schedule.size * self.accumulate

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield this rank's batches of `epoch` as arrays of row ids."""
        steps = len(self) // self.accumulate
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows = self.schedule.rows(step)
            for at in range(0, len(rows), self.global_batch):
                yield rows[at : at + self.global_batch][self.share.rank :: self.share.world_size]

    def fingerprint(self, epoch: int) -> str:
        """Return a key of sources, seed and step size; weights are kept by whoever sets them."""
        head = f"{self.global_batch},{self.schedule.size},{self.share.world_size},{self.schedule.seed};"
        rows = b"".join(r.astype("<i8").tobytes() + b";" for r in self.schedule.rows_of)
        return hashlib.sha256(head.encode() + rows).hexdigest()[:16]
