"""Pairs of images, decoded when they are asked for, or read from a cache of latents."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pl_prefopt.datamodules.image.geometry import Frame, Geometry
from pl_prefopt.datamodules.media.rows import MediaPairs


class ImagePairs(MediaPairs):
    """Random access to pairs of images, the better one first.

    `rows[i]` is a dict: `index`, `caption`, `time_ids` (6,), the data columns of the file, and `pixels` (2, 3, H, W) in
    [-1, 1] or, with a cache, `latents_mean`, `latents_std` (2, C, h, w) and the text tensors.
    """

    transform: Geometry

    @property
    def geometry(self) -> Geometry:
        """How images are scaled, cropped and flipped."""
        return self.transform

    def pixels(self, index: int, frame: Frame | None = None, which: Sequence[int] = (0, 1)) -> Tensor:
        """Return images of a pair as (len(which), 3, H, W) float32 in [-1, 1]; `frame` None takes that of the epoch."""
        return self.tensors(index, frame, which)
