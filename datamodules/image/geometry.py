"""One geometric decision per pair: both images are scaled, flipped and cropped by the same rule.

Neither is stretched: each keeps its aspect ratio, fills the frame, and is cropped at the same relative place.

Independent crops and flips (half of the pairs then differ by a flip) would teach a difference that no one preferred.
Sizes are (height, width) in pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.datamodules.media.kind import Size, Sizes
from pl_prefopt.datamodules.media.rows import uniform
from pl_prefopt.utilities.checks import choice, integer, within
from pl_prefopt.utilities.seeding import derive_seed

if TYPE_CHECKING:
    from PIL import Image

CROPS = ("shared-center", "shared-random", "pad")
FILTERS = ("bilinear", "bicubic", "lanczos")
BUCKET_STEP = 64
Offset = tuple[int, int]
NO_OFFSETS = ((0, 0), (0, 0))
GREY = (128, 128, 128)
MOVED = {
    name: f"geometry.{name}" for name in ("resolution", "crop", "flip", "crop_variants", "interpolation", "buckets")
}
"""Earlier argument of `ImagePreferenceDataModule` -> where it is now."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What is done to both images of a pair.

    Args:
        size: size of the result.
        scaled: size that each image is resized to.
        offsets: (top, left) of the crop in each resized, flipped image; 0 where nothing is cropped.
        flip: mirror left to right, before the crop.
        original: size of the first image as it was.
    """

    size: Size
    scaled: Sizes
    offsets: tuple[Offset, Offset]
    flip: bool
    original: Size

    @property
    def offset(self) -> Offset:
        """(top, left) of the crop in the first image."""
        return self.offsets[0]

    def conditions(self) -> dict[str, Tensor]:
        """Return `time_ids` (6,), SDXL's size conditioning: original size, crop offset, target size."""
        return {"time_ids": torch.tensor([float(v) for v in (*self.original, *self.offset, *self.size)])}

    def key(self, which: int) -> str:
        """Return all that decides the pixels of image `which` beside its bytes."""
        return f"{self.scaled[which]} {self.offsets[which]} {self.size} {int(self.flip)}"


@dataclass(frozen=True)
class Geometry:
    """How images are scaled, cropped and flipped, both of a pair alike.

    Args:
        resolution: pixels of the result: one number, or [height, width].
        crop: "shared-center" and "shared-random" fill the frame, "pad" keeps all of both images on a grey background.
        flip: probability that both images of a pair are mirrored.
        crop_variants: different random crops of a pair; 0 means a new one every epoch, which cannot be cached.
        interpolation: "bilinear", "bicubic" or "lanczos".
        buckets: list of [height, width]; a pair gets the one of the nearest aspect ratio; "auto" makes multiples of 64
            of the area of `resolution`; None: all pairs have `resolution`.
        seed: key of crops and flips; None takes that of the datamodule.

    Raises:
        ValueError: an unknown word, a probability out of range, or a size that is not positive.
    """

    resolution: int | list[int] = 512
    crop: str = "shared-center"
    flip: float = 0.0
    crop_variants: int = 4
    interpolation: str = "lanczos"
    buckets: str | list[list[int]] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        choice("crop", self.crop, CROPS)
        choice("interpolation", self.interpolation, FILTERS)
        within("flip", self.flip, 0, 1)
        integer("crop_variants", self.crop_variants, least=0)
        _ = self.sizes

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes of the result; of several, a pair gets that of the nearest aspect ratio."""
        return result_sizes(self.resolution, self.buckets)

    def without_randomness(self) -> Geometry:
        """Return the rules for evaluation: the centre instead of random crops, no flips."""
        crop = "shared-center" if self.random_crop else self.crop
        return replace(self, crop=crop, flip=0.0)

    @property
    def random_crop(self) -> bool:
        """Whether crops differ from epoch to epoch."""
        return self.crop == "shared-random"

    def bucket(self, sizes: Sizes) -> int:
        """Return the number of the result size whose aspect ratio is nearest to the (geometric) mean of the pair's."""
        if len(self.sizes) == 1:
            return 0
        aspect = sum(math.log(height / width) for height, width in sizes) / 2
        return int(np.argmin([abs(aspect - math.log(h / w)) for h, w in self.sizes]))

    def view(self, sizes: Sizes, epoch: int, index: int) -> Frame:
        """Return the decision for pair `index` in `epoch`; it depends on nothing else."""
        variant = epoch
        if self.random_crop and self.crop_variants:
            variant = derive_seed(self.seed or 0, "crop", epoch, index) % self.crop_variants
        flip = self.flip > 0 and uniform(self.seed or 0, "flip", epoch, index) < self.flip
        return self.variant(sizes, index, variant, flip)

    def variants(self, sizes: Sizes, index: int) -> list[Frame]:
        """Return all frames that `view` can give, without repetition."""
        crops = range(self.crop_variants if self.random_crop else 1)
        flips = [f for f, possible in ((False, self.flip < 1), (True, self.flip > 0)) if possible]
        return list(dict.fromkeys(self.variant(sizes, index, v, f) for v in crops for f in flips))

    def variant(self, originals: Sizes, index: int, variant: int, flip: bool) -> Frame:
        """Return the frame of one crop variant."""
        size = self.sizes[self.bucket(originals)]
        if self.crop == "pad":
            return Frame(size, (_fit(originals[0], size), _fit(originals[1], size)), NO_OFFSETS, flip, originals[0])
        scaled = _fill(originals[0], size), _fill(originals[1], size)
        places = None
        if self.random_crop:
            top, left = (uniform(self.seed or 0, "offset", axis, variant, index) for axis in ("top", "left"))
            places = top, left
        offsets = _offset(scaled[0], size, places), _offset(scaled[1], size, places)
        return Frame(size, scaled, offsets, flip, originals[0])

    def tensor(self, media: Image.Image, which: int, view: Frame) -> Tensor:
        """Return image `which` (0 or 1) of a pair as (3, H, W) float32 in [-1, 1]."""
        from PIL import Image

        height, width = view.scaled[which]
        if (width, height) != media.size:
            media = media.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if view.flip:
            media = media.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        media = _padded(media, view.size) if self.crop == "pad" else _cropped(media, view, which)
        values = torch.from_numpy(np.array(media)).permute(2, 0, 1)
        return values.float().div_(127.5).sub_(1.0)

    def settings(self) -> dict[str, Any]:
        """Return what decides pixels, as plain values; flips are left out, both directions may be stored."""
        settings: dict[str, Any] = {"rules": 2, "resolution": [list(s) for s in self.sizes], "crop": self.crop}
        if self.random_crop:
            settings |= {"crop_variants": self.crop_variants, "seed": self.seed or 0}
        return settings | {"interpolation": self.interpolation}


def result_sizes(resolution: int | Sequence[int], buckets: str | Sequence[Sequence[int]] | None) -> tuple[Size, ...]:
    """Return the sizes of results: `resolution`, or the buckets.

    Raises:
        ValueError: a size is not a positive whole number, or "auto" buckets cannot be made.
    """
    size = _size("resolution", [resolution, resolution] if isinstance(resolution, int) else resolution)
    if buckets is None:
        return (size,)
    if isinstance(buckets, str):
        choice("buckets", buckets, ("auto",))
        return auto_buckets(size)
    if not buckets:
        raise ValueError('buckets must be [height, width] pairs, "auto" or None, got an empty list')
    return tuple(dict.fromkeys(_size(f"buckets[{i}]", b) for i, b in enumerate(buckets)))


def auto_buckets(size: Size, step: int = BUCKET_STEP) -> tuple[Size, ...]:
    """Return sizes in multiples of 64 with at most the area of `size`, from aspect ratio 1:2 to 2:1.

    Raises:
        ValueError: the area is below that of 256 x 256.
    """
    area = size[0] * size[1]
    if area < (4 * step) ** 2:
        raise ValueError(
            f'resolution must be at least {4 * step} x {4 * step} pixels with buckets "auto", got {list(size)}. Give '
            "smaller buckets as a list of [height, width]."
        )
    sizes = [(h, area // h // step * step) for h in range(step, area // step, step)]
    return tuple((h, w) for h, w in sizes if w and 0.5 <= h / w <= 2)


def check_encodable(geometry: Geometry, factor: int) -> None:
    """Require sizes that VAE and network take without rounding, and a limited number of frames.

    Raises:
        ValueError: a side is no multiple of `factor` (the message names the nearest size that is), or every epoch has
            new crops.
    """
    if geometry.random_crop and not geometry.crop_variants:
        raise ValueError(
            "crop_variants must be >= 1 with cache: true, got 0, which is a new crop every epoch. Limit the crops, or "
            "set cache: false."
        )
    for height, width in geometry.sizes:
        if height % factor or width % factor:
            nearest = [max(factor, round(v / factor) * factor) for v in (height, width)]
            raise ValueError(
                f"resolution must be multiples of {factor}, which this model's VAE and network need, got {height} x "
                f"{width} pixels (height x width). The nearest is {nearest[0]} x {nearest[1]}."
            )


def _size(argument: str, value: Sequence[int]) -> Size:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(sides) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in sides):
        raise ValueError(f"{argument} must be [height, width] in pixels, integers >= 1, or one number, got {value!r}")
    return sides[0], sides[1]


def _fill(original: Size, size: Size) -> Size:
    """The smallest size of the same aspect ratio that covers `size`."""
    scale = max(t / o for o, t in zip(original, size, strict=True))
    return max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale))


def _offset(scaled: Size, size: Size, places: tuple[float, float] | None) -> Offset:
    """(top, left) of a crop of `size`: at the relative places in [0, 1), or (None) in the centre."""
    rooms = scaled[0] - size[0], scaled[1] - size[1]
    if places is None:
        return rooms[0] // 2, rooms[1] // 2
    return int(places[0] * (rooms[0] + 1)), int(places[1] * (rooms[1] + 1))


def _fit(original: Size, size: Size) -> Size:
    """The largest size of the same aspect ratio inside `size`."""
    scale = min(t / o for o, t in zip(original, size, strict=True))
    return min(size[0], max(1, round(original[0] * scale))), min(size[1], max(1, round(original[1] * scale)))


def _cropped(image: Image.Image, frame: Frame, which: int) -> Image.Image:
    top, left = frame.offsets[which]
    return image.crop((left, top, left + frame.size[1], top + frame.size[0]))


def _padded(image: Image.Image, size: Size) -> Image.Image:
    if image.size == (size[1], size[0]):
        return image
    from PIL import Image

    background = Image.new("RGB", (size[1], size[0]), GREY)
    background.paste(image, ((size[1] - image.width) // 2, (size[0] - image.height) // 2))
    return background
