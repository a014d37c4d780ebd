"""Batches of samples of one size: pairs of different buckets never share a batch."""

from __future__ import annotations

import hashlib

import numpy as np

from pl_prefopt.datamodules.loading.batches import Batches, Share


class BucketBatches:
    """Order the pairs of an epoch into batches of one bucket each, and hand out this rank's share.

    The order depends on (seed, epoch) only. Batches of all buckets are mixed; pairs that do not fill a batch of their
    bucket, or a whole optimizer step, are left out, a different subset each epoch.

    Args:
        buckets: (N,) number of the bucket of each pair.
        batch_size: pairs per rank and micro-batch.
        share: this rank and the number of ranks.
        accumulate: micro-batches per optimizer step.
        seed: seed of the order.
        shuffle: False keeps the order of the file within buckets and of the buckets.
        drop_last: False keeps smaller batches; one rank only.

    Raises:
        ValueError: the rows do not fill one optimizer step, or `drop_last=False` on several ranks.
    """

    def __init__(
        self,
        buckets: np.ndarray,
        batch_size: int,
        share: Share,
        *,
        accumulate: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.buckets, self.batch_size, self.share = np.asarray(buckets), batch_size, share
        self.accumulate, self.seed, self.shuffle, self.drop_last = accumulate, seed, shuffle, drop_last
        if not drop_last and share.world_size > 1:
            raise ValueError(
                f"drop_last must be True on several devices, got False with {share.world_size} devices: ranks "
                "would receive different numbers of batches and deadlock"
            )
        if len(self) == 0:
            sizes = np.bincount(self.buckets).tolist()
            raise ValueError(
                f"train must fill one optimizer step of {self._group} batches of {batch_size} pairs of one size, got "
                f"buckets of {sizes} pairs. Use fewer buckets, lower batch_size or accumulate_grad_batches, or add "
                "pairs."
            )

    @property
    def _group(self) -> int:
        return self.share.world_size * self.accumulate

    def __len__(self) -> int:
        """Number of batches of this rank in one epoch."""
        sizes = np.bincount(self.buckets)
        if not self.drop_last:
            return int((-(-sizes // self.batch_size)).sum())
        return int((sizes // self.batch_size).sum()) // self._group * self.accumulate

    @property
    def left_out(self) -> int:
        """Pairs that an epoch does not use."""
        used = len(self) * self.share.world_size * self.batch_size
        return len(self.buckets) - used if self.drop_last else 0

    def all_batches(self, epoch: int) -> Batches:
        """Return the batches of all ranks in `epoch`, in order."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(len(self.buckets)) if self.shuffle else np.arange(len(self.buckets))
        batches = _cut_by_bucket(rows, self.buckets, self.batch_size)
        if self.drop_last:
            batches = [b for b in batches if len(b) == self.batch_size]
        order = rng.permutation(len(batches)) if self.shuffle else np.arange(len(batches))
        return [batches[i] for i in order[: len(self) * self.share.world_size]]

    def batches(self, epoch: int) -> Batches:
        """Return this rank's batches of `epoch` as arrays of row ids."""
        return self.all_batches(epoch)[self.share.rank :: self.share.world_size]

    def fingerprint(self, epoch: int) -> str:
        """Return a key of the order of `epoch` and of how it is cut; equal on all ranks."""
        return _key(self.all_batches(epoch), f"{self._group},{self.share.world_size}")


class BucketEvalBatches:
    """Every pair exactly once over all ranks, batches of one bucket, the same number of batches on every rank.

    Raises:
        ValueError: too few pairs for the ranks to get the same number of batches.
    """

    def __init__(self, buckets: np.ndarray, batch_size: int, share: Share, *, name: str = "evaluation") -> None:
        self.share = share
        rows = np.arange(len(buckets))
        self._all = _evened(_cut_by_bucket(rows, np.asarray(buckets), batch_size), share.world_size, name)

    def __len__(self) -> int:
        """Number of batches, equal on all ranks."""
        return len(self._all) // self.share.world_size

    def batches(self, epoch: int = 0) -> Batches:
        """Return this rank's batches."""
        return self._all[self.share.rank :: self.share.world_size]

    def fingerprint(self, epoch: int = 0) -> str:
        """Return a key of the order and of how it is cut."""
        return _key(self._all, str(self.share.world_size))


def _cut_by_bucket(rows: np.ndarray, buckets: np.ndarray, size: int) -> Batches:
    parts = [rows[buckets[rows] == b] for b in np.unique(buckets)]
    return [part[at : at + size] for part in parts for at in range(0, len(part), size)]


def _evened(batches: Batches, world_size: int, name: str) -> Batches:
    """Halve the largest batches until the ranks can share them equally."""
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        rows = batches[largest]
        if len(rows) < 2:
            raise ValueError(
                f"{name} must hold enough pairs per bucket for {world_size} devices to get as many batches each, got "
                f"{sum(map(len, batches))} pairs. Add pairs, or use fewer devices or buckets."
            )
        batches = [*batches[:largest], rows[: len(rows) // 2], rows[len(rows) // 2 :], *batches[largest + 1 :]]
    return batches


def _key(batches: Batches, head: str) -> str:
    text = f"{head};" + ";".join(" ".join(map(str, b.tolist())) for b in batches)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
