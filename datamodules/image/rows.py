"""Image pairs as random-access rows, decoded when they are asked for, or read from a cache of latents.

Legend: N pairs of a split, B pairs of a batch, H x W pixels of the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pl_prefopt.datamodules.files.checks import BadRow
from pl_prefopt.datamodules.image.decode import decode
from pl_prefopt.datamodules.image.geometry import Frame, Geometry, Size, uniform
from pl_prefopt.datamodules.media.records import TIE, ImageSource
from pl_prefopt.datamodules.media.scan import COLUMNS, digest_of


class Moments(Protocol):
    """What a filled cache gives."""

    def pair(self, digests: tuple[str, str], frame: Frame) -> dict[str, Tensor]: ...
    def text(self, caption: str) -> dict[str, Tensor]: ...


class ImagePairs(Dataset[dict[str, Any]]):
    """Random access to pairs of images, the better one first.

    `rows[i]` is a dict: `index`, `caption`, `time_ids` (6,), the numbers of the file, and `pixels` (2, 3, H, W) in
    [-1, 1] or, with a cache, what the cache gives. Crop, flip and caption dropout depend on (seed, epoch, index) only.

    Args:
        source: where encoded images come from.
        scanned: columns, numbers and counts that `scan` found.
        geometry: rules of scale, crop and flip.
        ties: "drop" leaves out pairs labelled .5, "half" gives `preference_prob`, "keep" lets image 0 win.
        convert: kinds of images that are converted.
        caption_dropout: probability that a pair has the caption "".
        select: (n,) pairs of the scan to show, in this order; None means all that `ties` leaves.
    """

    def __init__(
        self,
        source: ImageSource,
        scanned: dict[str, Any],
        geometry: Geometry,
        *,
        ties: str = "drop",
        convert: frozenset[str] = frozenset(),
        caption_dropout: float = 0.0,
        select: np.ndarray | None = None,
    ) -> None:
        self.source, self.scanned, self.geometry = source, scanned, geometry
        self.ties, self.convert, self.caption_dropout = ties, convert, caption_dropout
        self.columns: dict[str, list[Any]] = scanned["columns"]
        labels = np.asarray(self.columns["label"], float)
        tied = labels == TIE
        if select is None:
            select = np.flatnonzero(~tied) if ties == "drop" else np.arange(len(labels))
        self.selected = select
        self.counts = {**scanned["counts"], f"ties/{_TOLD[ties]}": int(tied.sum()), "pairs": len(select)}
        self.moments: Moments | None = None
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops, flips and dropped captions `rows[i]` shows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        at = int(self.selected[index])
        frame = self.geometry.frame(self.sizes(index), self.epoch, index)
        row: dict[str, Any] = {"index": index, "caption": self._caption(at, index), **self._numbers(at)}
        row["time_ids"] = torch.tensor(frame.time_ids())
        if self.moments is None:
            return row | {"pixels": self.pixels(index, frame)}
        return row | self.moments.pair(self.digests(index), frame) | self.moments.text(row["caption"])

    def pixels(self, index: int, frame: Frame, which: Sequence[int] = (0, 1)) -> Tensor:
        """Return images of a pair as (len(which), 3, H, W) float32 in [-1, 1].

        Raises:
            ValueError: the file cannot be read, or is no longer the one that was scanned.
        """
        at = int(self.selected[index])
        pictures = self.source[self.columns["row"][at]].pictures
        out = []
        for k in which:
            picture = pictures[self.columns[("first", "second")[k]][at]]
            try:
                data = picture.read()
                if digest_of(data) != self.columns[f"digest_{k}"][at]:
                    found = "other bytes than when the data were scanned"
                    raise BadRow("changed", picture.field, found, "unchanged files", "Start again to scan them anew.")
                image, _ = decode(data, picture.field, self.convert)
            except BadRow as error:
                raise error.at(self.where(index)) from None
            out.append(self.geometry.pixels(image, k, frame))
        return torch.stack(out)

    def where(self, index: int) -> str:
        """Return file and row of pair `index`."""
        return self.source.where(self.source_row(index))

    def source_row(self, index: int) -> int:
        """Return the number (from 0) of the row in the file that pair `index` came from."""
        return int(self.columns["row"][int(self.selected[index])])

    def sizes(self, index: int) -> tuple[Size, Size]:
        """Return the original sizes (height, width) of both images."""
        at = int(self.selected[index])
        one, two = self.columns["size_0"][at], self.columns["size_1"][at]
        return (one[0], one[1]), (two[0], two[1])

    def digests(self, index: int) -> tuple[str, str]:
        """Return the content keys of both images."""
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
        """(N,) number of the result size of each pair."""
        return np.array([self.geometry.bucket(self.sizes(i)[0]) for i in range(len(self))])

    def digest(self) -> str:
        """Return the SHA-256 of images, captions, labels and geometry, in order: of what the model sees."""
        total = hashlib.sha256(json.dumps(["images-1", self.geometry.settings()]).encode())
        names = [n for n in COLUMNS if n not in ("row", "first", "second")]
        for at in self.selected:
            total.update(json.dumps([self.columns[n][at] for n in names]).encode())
        return total.hexdigest()

    def select(self, rows: np.ndarray) -> ImagePairs:
        """Return a view of `rows`; `index` counts within the view."""
        return self._like(self.geometry, self.caption_dropout, self.selected[rows])

    def still(self) -> ImagePairs:
        """Return the same pairs without random crops, flips and dropped captions, for evaluation."""
        return self._like(self.geometry.still(), 0.0, self.selected)

    def _like(self, geometry: Geometry, caption_dropout: float, select: np.ndarray) -> ImagePairs:
        options: dict[str, Any] = {"ties": self.ties, "convert": self.convert, "select": select}
        return ImagePairs(self.source, self.scanned, geometry, caption_dropout=caption_dropout, **options)

    def _caption(self, at: int, index: int) -> str:
        share = self.caption_dropout
        dropped = share > 0 and uniform(self.geometry.seed, "caption", self.epoch, index) < share
        return "" if dropped else self.columns["caption"][at]

    def _numbers(self, at: int) -> dict[str, float]:
        numbers = {name: values[at] for name, values in (self.scanned["numbers"] or {}).items()}
        if self.ties == "half" and (self.columns["label"][at] == TIE or "preference_prob" not in numbers):
            numbers["preference_prob"] = self.columns["label"][at]
        return numbers


_TOLD = {"drop": "dropped", "half": "half", "keep": "kept"}


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows: tensors as they are, numbers as (B,) float32, `index` (B,) int64, `caption` a list of str."""
    batch: dict[str, Any] = {"caption": [r["caption"] for r in rows], "index": torch.tensor([r["index"] for r in rows])}
    for name in sorted(rows[0].keys() - batch.keys()):
        values = [r[name] for r in rows]
        batch[name] = (
            torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values, dtype=torch.float32)
        )
    return batch


def split_captions(rows: ImagePairs, fraction: float, seed: int) -> tuple[ImagePairs, ImagePairs]:
    """Return (train, val): captions drawn by the seed, with all their pairs, until `fraction` of the pairs is reached.

    No caption, and so no image of it, is on both sides.

    Raises:
        ValueError: one side would be empty.
    """
    names, owner = np.unique(np.asarray(rows.captions, dtype=object).astype(str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(owner, minlength=len(names))[order]
    count = int(np.searchsorted(np.cumsum(sizes), fraction * len(rows), side="left")) + 1
    chosen = np.isin(owner, order[:count])
    if chosen.all():
        raise ValueError(
            f"val: fraction {fraction} of {len(rows)} pairs with {len(names)} different captions leaves nothing for "
            "training; accepted: at least one caption on both sides. Give validation files instead."
        )
    return rows.select(np.flatnonzero(~chosen)), rows.select(np.flatnonzero(chosen))
