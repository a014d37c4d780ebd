"""Pairs of media files as random-access rows, decoded when they are asked for, or read from a cache of latents.

Legend: N pairs of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pl_prefopt.datamodules.media.kind import Sizes, Transform, View
from pl_prefopt.datamodules.media.records import TIE, MediaSource
from pl_prefopt.datamodules.media.scan import COLUMNS, Scanned, digest_of
from pl_prefopt.utilities.rows import BadRow
from pl_prefopt.utilities.seeding import derive_seed

Pairs = TypeVar("Pairs", bound="MediaPairs")
TIES = {"drop": "dropped", "half": "half", "keep": "kept"}
"""Policy for ties -> name of the count."""


class Cache(Protocol):
    """What a filled cache gives."""

    def pair(self, digests: tuple[str, str], view: View) -> dict[str, Tensor]: ...
    def text(self, caption: str) -> dict[str, Tensor]: ...


class MediaPairs(Dataset[dict[str, Any]]):
    """Random access to pairs of media files, the better one first.

    `rows[i]` is a dict: `index`, `caption`, the conditions of the view, the data columns of the file, and the decoded
    tensors (2, ...) under the name of the kind ("pixels") or, with a cache, what the cache gives. The view and whether
    the caption is dropped depend on (seed, epoch, index) only.

    Args:
        source: where encoded files come from.
        scanned: what `scan` found.
        transform: how decoded files become tensors.
        ties: "drop" leaves out pairs labelled .5, "half" gives `preference_prob`, "keep" lets file 0 win.
        caption_dropout: probability that a pair has the caption "".
        seed: key of the dropped captions.
        select: (n,) pairs of the scan to show, in this order; None means all that `ties` leaves.
    """

    def __init__(
        self,
        source: MediaSource,
        scanned: Scanned,
        transform: Transform,
        *,
        ties: str = "drop",
        caption_dropout: float = 0.0,
        seed: int = 0,
        select: np.ndarray | None = None,
    ) -> None:
        self.source, self.scanned, self.transform = source, scanned, transform
        self.ties, self.caption_dropout, self.seed = ties, caption_dropout, seed
        self.columns = scanned["columns"]
        labels = np.asarray(self.columns["label"], float)
        tied = labels == TIE
        if select is None:
            select = np.flatnonzero(~tied) if ties == "drop" else np.arange(len(labels))
        self.selected = select
        self.counts = {**scanned["counts"], f"ties/{TIES[ties]}": int(tied.sum()), "pairs": len(select)}
        self.unused = scanned["unused"]
        self.cache: Cache | None = None
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views and dropped captions `rows[i]` shows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        view: View = self.transform.view(self.sizes(index), self.epoch, index)
        row: dict[str, Any] = {"index": index, "caption": self._caption(index), **self._numbers(index)}
        row |= view.conditions()
        if self.cache is None:
            return row | {self.source.kind.tensor: self.tensors(index, view)}
        return row | self.cache.pair(self.digests(index), view) | self.cache.text(row["caption"])

    def tensors(self, index: int, view: View | None = None, which: Sequence[int] = (0, 1)) -> Tensor:
        """Return files of a pair as one tensor (len(which), ...).

        Args:
            index: number of the pair.
            view: the view; None takes that of the epoch.
            which: 0 for the better file, 1 for the other.

        Raises:
            ValueError: a file cannot be read, or is no longer the one that was scanned.
        """
        view = view or self.transform.view(self.sizes(index), self.epoch, index)
        at = int(self.selected[index])
        files = self.source[self.columns["row"][at]].files
        tensors = []
        for k in which:
            file = files[self.columns[("first", "second")[k]][at]]
            try:
                data = file.read()
                if digest_of(data) != self.columns[f"digest_{k}"][at]:
                    found = "other bytes than when the data were scanned"
                    raise BadRow("changed", file.field, found, "unchanged", "Start again to scan the files anew.")
                media = self.source.kind.decode(data, file.field).media
            except BadRow as error:
                raise error.at(self.where(index)) from None
            tensors.append(self.transform.tensor(media, k, view))
        return torch.stack(tensors)

    def where(self, index: int) -> str:
        """Return file and row of pair `index`."""
        return self.source.where(self.source_row(index))

    def source_row(self, index: int) -> int:
        """Return the number (from 0) of the row in the file that pair `index` came from."""
        return int(self.columns["row"][int(self.selected[index])])

    @property
    def source_rows(self) -> np.ndarray:
        """(N,) the same for all pairs."""
        return np.asarray(self.columns["row"])[self.selected]

    def sizes(self, index: int) -> Sizes:
        """Return the original sizes of both files."""
        at = int(self.selected[index])
        first, second = (tuple(self.columns[f"size_{k}"][at]) for k in (0, 1))
        return first, second

    def digests(self, index: int) -> tuple[str, str]:
        """Return the content keys of both files."""
        at = int(self.selected[index])
        return self.columns["digest_0"][at], self.columns["digest_1"][at]

    @property
    def captions(self) -> list[str]:
        """Captions of all pairs, before dropout."""
        return [self.columns["caption"][i] for i in self.selected]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) cost of a pair: the same for all."""
        return np.ones(len(self), np.int64)

    @property
    def buckets(self) -> np.ndarray:
        """(N,) number of the bucket of each pair."""
        return np.array([self.transform.bucket(self.sizes(i)) for i in range(len(self))])

    def digest(self) -> str:
        """Return the SHA-256 of files, captions, labels and transform, in order: of what the model sees."""
        total = hashlib.sha256(json.dumps([f"{self.source.kind.item}s-1", self.transform.settings()]).encode())
        names = [name for name in COLUMNS if name not in ("row", "first", "second")]
        for at in self.selected:
            total.update(json.dumps([self.columns[name][at] for name in names]).encode())
        return total.hexdigest()

    def select(self: Pairs, rows: np.ndarray) -> Pairs:
        """Return a view of `rows`; `index` counts within the view."""
        return self._copy(self.transform, self.caption_dropout, self.selected[rows])

    def without_randomness(self: Pairs) -> Pairs:
        """Return the same pairs without random views and dropped captions, for evaluation."""
        return self._copy(self.transform.without_randomness(), 0.0, self.selected)

    def _copy(self: Pairs, transform: Transform, caption_dropout: float, select: np.ndarray) -> Pairs:
        options: dict[str, Any] = {"ties": self.ties, "seed": self.seed, "select": select}
        return type(self)(self.source, self.scanned, transform, caption_dropout=caption_dropout, **options)

    def _caption(self, index: int) -> str:
        share = self.caption_dropout
        dropped = share > 0 and uniform(self.seed, "caption", self.epoch, index) < share
        return "" if dropped else self.columns["caption"][int(self.selected[index])]

    def _numbers(self, index: int) -> dict[str, Any]:
        at = int(self.selected[index])
        numbers = {name: values[at] for name, values in self.scanned["numbers"].items()}
        if self.ties == "half" and (self.columns["label"][at] == TIE or "preference_prob" not in numbers):
            numbers["preference_prob"] = self.columns["label"][at]
        return numbers


def uniform(*keys: int | str) -> float:
    """Return a number in [0, 1) that depends on the keys only."""
    return derive_seed(*keys) / 2**63


def split_by_caption(captions: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row ids of (train, val): captions drawn by the seed, with all their pairs, up to `fraction`.

    No caption, and so no file of it, is on both sides.

    Raises:
        ValueError: one side would be empty.
    """
    names, owner = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(owner, minlength=len(names))[order]
    count = int(np.searchsorted(np.cumsum(sizes), fraction * len(captions), side="left")) + 1
    held_out = np.isin(owner, order[:count])
    if held_out.all():
        raise ValueError(
            f"val must be a fraction that leaves at least one caption on both sides, got {fraction} of {len(captions)} "
            f"pairs with {len(names)} different captions, which leaves nothing for training. Give validation files "
            "instead."
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
