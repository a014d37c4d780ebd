"""Which rows go into which batch on which rank: pure functions of (lengths, seed, epoch), so nothing has to be stored.

Legend: G rows of one global batch (batch_size * world_size), S rows of one optimizer step (G * accumulate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Batches = list[np.ndarray]
WINDOW = 50
"""Global steps that are shuffled together before rows of similar length are grouped."""


@dataclass(frozen=True)
class Share:
    """The part of the work that falls to this process: `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1


class TrainBatches:
    """Order the rows of an epoch into batches, the same on every rank, and hand out this rank's share.

    The S rows of an optimizer step are chosen first, from (seed, epoch) alone, and then split over accumulation steps
    and ranks: two ranks with batch b see in every step the same rows as one rank with batch 2b, or one with batch b and
    two accumulation steps. Rows that do not fill a whole step are left out, a different subset each epoch.

    Args:
        lengths: (N,) cost of a row, for example its tokens; only its order matters.
        batch_size: rows per rank and micro-batch.
        share: this rank and the number of ranks.
        accumulate: micro-batches per optimizer step.
        seed: seed of the order.
        length_buckets: group rows of similar length within windows of 50 steps; the order of steps stays random.
        shuffle: False keeps the order of the file.
        drop_last: False keeps the last, smaller batches; one rank only.

    Raises:
        ValueError: the rows do not fill one optimizer step, or `drop_last=False` on several ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        share: Share | None = None,
        *,
        accumulate: int = 1,
        seed: int = 0,
        length_buckets: bool = True,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.share = share or Share()
        self.seed = seed
        self.length_buckets = length_buckets
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.global_batch = batch_size * self.share.world_size
        self.step_rows = self.global_batch * accumulate
        if not drop_last and self.share.world_size > 1:
            raise ValueError(
                f"drop_last must be True on several devices, got False with {self.share.world_size} devices: ranks "
                "would receive different numbers of batches and deadlock"
            )
        if len(self) == 0:
            raise ValueError(
                f"train must hold at least one optimizer step of {self.step_rows} rows (batch_size {batch_size} x "
                f"{self.share.world_size} devices x {accumulate} accumulated batches), got {len(self.lengths)}. Lower "
                "batch_size or accumulate_grad_batches, or add rows."
            )

    def __len__(self) -> int:
        """Number of batches of this rank in one epoch."""
        if not self.drop_last:
            return -(-len(self.lengths) // self.batch_size)
        return len(self.lengths) // self.step_rows * (self.step_rows // self.global_batch)

    @property
    def left_out(self) -> int:
        """Rows that an epoch does not use because they do not fill a step."""
        return 0 if not self.drop_last else len(self.lengths) % self.step_rows

    def order(self, epoch: int) -> np.ndarray:
        """Return the row ids of `epoch` in the order in which global batches are cut from them."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        whole = len(rows) // self.step_rows * self.step_rows
        steps, tail = rows[:whole], rows[whole:]
        if self.length_buckets and whole:
            steps = _bucketed(steps, self.lengths, self.step_rows, rng if self.shuffle else None)
        return steps if self.drop_last else np.concatenate([steps, tail])

    def batches(self, epoch: int) -> Batches:
        """Return this rank's batches of `epoch` as arrays of row ids."""
        rows = self.order(epoch)
        cuts = range(0, len(rows), self.global_batch)
        return [rows[at : at + self.global_batch][self.share.rank :: self.share.world_size] for at in cuts]

    def fingerprint(self, epoch: int) -> str:
        """Return a key of the order of `epoch` and of how it is cut; equal on all ranks."""
        head = f"{self.global_batch},{self.step_rows},{self.share.world_size};".encode()
        return hashlib.sha256(head + self.order(epoch).astype("<i8").tobytes()).hexdigest()[:16]


class EvalBatches:
    """Every row exactly once over all ranks, no duplicates, and the same number of batches on every rank.

    Full global batches come first; what remains is spread so that each rank gets at least one row (the last two global
    batches are evened out where needed), therefore strategies with collectives in the forward pass do not hang.

    Raises:
        ValueError: there are fewer rows than ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        share: Share | None = None,
        *,
        length_buckets: bool = False,
        name: str = "evaluation",
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.share = share or Share()
        self.global_batch = batch_size * self.share.world_size
        self.length_buckets = length_buckets
        if len(self.lengths) < self.share.world_size:
            raise ValueError(
                f"{name} must hold at least one row per device, got {len(self.lengths)} rows for "
                f"{self.share.world_size} devices. Add rows or use fewer devices."
            )
        self._cuts = _eval_cuts(len(self.lengths), self.global_batch, self.share.world_size)

    def __len__(self) -> int:
        """Number of batches, equal on all ranks."""
        return len(self._cuts) - 1

    def order(self, epoch: int = 0) -> np.ndarray:
        """Return all row ids in evaluation order, which does not depend on the epoch."""
        rows = np.arange(len(self.lengths))
        if not self.length_buckets:
            return rows
        whole = len(rows) // self.global_batch * self.global_batch
        head = _bucketed(rows[:whole], self.lengths, self.global_batch, np.random.default_rng(0)) if whole else rows[:0]
        return np.concatenate([head, rows[whole:]])

    def batches(self, epoch: int = 0) -> Batches:
        """Return this rank's batches."""
        rows = self.order()
        pairs = zip(self._cuts[:-1], self._cuts[1:], strict=True)
        return [rows[a:b][self.share.rank :: self.share.world_size] for a, b in pairs]

    def fingerprint(self, epoch: int = 0) -> str:
        """Return a key of the order and of how it is cut."""
        return hashlib.sha256(str(self._cuts).encode() + self.order().astype("<i8").tobytes()).hexdigest()[:16]


def _bucketed(rows: np.ndarray, lengths: np.ndarray, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Sort by length inside windows of `WINDOW` groups of `size` rows, then put the groups in random order."""
    window = size * WINDOW
    parts = [rows[at : at + window] for at in range(0, len(rows), window)]
    groups = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in parts]).reshape(-1, size)
    return (groups if rng is None else groups[rng.permutation(len(groups))]).reshape(-1)


def _eval_cuts(rows: int, global_batch: int, world_size: int) -> list[int]:
    cuts = [*range(0, rows, global_batch), rows]
    # A last global batch with fewer rows than ranks would leave a rank without a batch: even out the last two, or merge
    # them where together they still hold fewer than two rows per rank.
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < world_size:
        room = cuts[-1] - cuts[-3]
        cuts[-2:-1] = [cuts[-3] + room // 2] if room >= 2 * world_size else []
    return cuts
