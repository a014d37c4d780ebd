"""One geometric decision per pair: both images are scaled, flipped and cropped alike.

Independent crops and flips (half of the pairs then differ by a flip) would teach a difference that no one preferred.
Sizes are (height, width) in pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pl_prefopt.datamodules.files.checks import one_of
from pl_prefopt.utilities.seeding import derive_seed

Size = tuple[int, int]
CROPS = ("shared-center", "shared-random", "pad")
FILTERS = {n: getattr(Image.Resampling, n.upper()) for n in ("bilinear", "bicubic", "lanczos")}
BUCKET_STEP = 64
GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Frame:
    """What is done to both images of a pair.

    Args:
        size: size of the result.
        scaled: size that each image is resized to.
        offset: (top, left) of the crop in the resized, flipped first image; 0 where nothing is cropped.
        flip: mirror left to right, before the crop.
        original: size of the first image as it was.
    """

    size: Size
    scaled: tuple[Size, Size]
    offset: tuple[int, int]
    flip: bool
    original: Size

    def time_ids(self) -> list[float]:
        """Return SDXL's size conditioning: original size, crop offset, target size."""
        return [float(v) for v in (*self.original, *self.offset, *self.size)]

    def key(self, which: int) -> str:
        """Return all that decides the pixels of image `which` beside its bytes."""
        return f"{self.scaled[which]} {self.offset} {self.size} {int(self.flip)}"


@dataclass(frozen=True)
class Geometry:
    """The rules by which frames are made.

    Args:
        sizes: sizes of the result; of several, a pair gets that of the nearest aspect ratio.
        crop: "shared-center" and "shared-random" fill the frame, "pad" keeps all of both images on a grey ground.
        flip: probability of a flip.
        interpolation: "bilinear", "bicubic" or "lanczos".
        crop_variants: number of different random crops of a pair; 0 means a new one every epoch.
        seed: key of all decisions.
    """

    sizes: tuple[Size, ...] = ((512, 512),)
    crop: str = "shared-center"
    flip: float = 0.0
    interpolation: str = "lanczos"
    crop_variants: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("crop", self.crop, CROPS)
        one_of("interpolation", self.interpolation, FILTERS)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: found {self.flip!r}; accepted: a probability in [0, 1].")

    def still(self) -> Geometry:
        """Return the rules without randomness, for evaluation."""
        crop = "shared-center" if self.crop == "shared-random" else self.crop
        return Geometry(self.sizes, crop, 0.0, self.interpolation, self.crop_variants, self.seed)

    @property
    def random_crop(self) -> bool:
        """Whether crops differ from epoch to epoch."""
        return self.crop == "shared-random"

    def bucket(self, size: Size) -> int:
        """Return the number of the result size whose aspect ratio is nearest to that of `size`."""
        if len(self.sizes) == 1:
            return 0
        aspect = math.log(size[0] / size[1])
        return int(np.argmin([abs(aspect - math.log(h / w)) for h, w in self.sizes]))

    def frame(self, originals: tuple[Size, Size], epoch: int, index: int) -> Frame:
        """Return the decision for pair `index` in `epoch`; it depends on nothing else."""
        variant = epoch
        if self.random_crop and self.crop_variants:
            variant = derive_seed(self.seed, "crop", epoch, index) % self.crop_variants
        flip = self.flip > 0 and uniform(self.seed, "flip", epoch, index) < self.flip
        return self.variant(originals, index, variant, flip)

    def variants(self, originals: tuple[Size, Size], index: int) -> list[Frame]:
        """Return all frames that `frame` can give, without repetition."""
        crops = range(self.crop_variants if self.random_crop else 1)
        flips = [f for f, possible in ((False, self.flip < 1), (True, self.flip > 0)) if possible]
        return list(dict.fromkeys(self.variant(originals, index, v, f) for v in crops for f in flips))

    def variant(self, originals: tuple[Size, Size], index: int, variant: int, flip: bool) -> Frame:
        """Return the frame of one crop variant."""
        size = self.sizes[self.bucket(originals[0])]
        if self.crop == "pad":
            return Frame(size, (_fit(originals[0], size), _fit(originals[1], size)), (0, 0), flip, originals[0])
        scaled = _fill(originals[0], size)
        places = (0.5, 0.5)
        if self.random_crop:
            places = tuple(uniform(self.seed, "offset", axis, variant, index) for axis in ("top", "left"))
        offset = tuple(
            int(p * (s - t + 1)) if self.random_crop else (s - t) // 2
            for p, s, t in zip(places, scaled, size, strict=True)
        )
        return Frame(size, (scaled, scaled), (offset[0], offset[1]), flip, originals[0])

    def pixels(self, image: Image.Image, which: int, frame: Frame) -> Tensor:
        """Return image `which` (0 or 1) of a pair as (3, H, W) float32 in [-1, 1]."""
        height, width = frame.scaled[which]
        if (width, height) != image.size:
            image = image.resize((width, height), FILTERS[self.interpolation])
        if frame.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = _padded(image, frame.size) if self.crop == "pad" else _cropped(image, frame)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return values.float().div_(127.5).sub_(1.0)

    def settings(self) -> dict[str, Any]:
        """Return what decides pixels, as plain values; flips are left out, both directions may be stored."""
        found: dict[str, Any] = {"resolution": [list(s) for s in self.sizes], "crop": self.crop}
        if self.random_crop:
            found |= {"crop_variants": self.crop_variants, "seed": self.seed}
        return found | {"interpolation": self.interpolation}


def uniform(*keys: int | str) -> float:
    """Return a number in [0, 1) that depends on the keys only."""
    return derive_seed(*keys) / 2**63


def result_sizes(resolution: int | Sequence[int], buckets: str | Sequence[Sequence[int]] | None) -> tuple[Size, ...]:
    """Return the sizes of results: `resolution`, or the buckets.

    Raises:
        ValueError: a size is not a positive whole number, or "auto" buckets cannot be made.
    """
    size = _size("resolution", [resolution, resolution] if isinstance(resolution, int) else resolution)
    if buckets is None:
        return (size,)
    if isinstance(buckets, str):
        one_of("buckets", buckets, ("auto",))
        return auto_buckets(size)
    if not buckets:
        raise ValueError('buckets: found an empty list; accepted: [height, width] pairs, "auto" or null.')
    return tuple(dict.fromkeys(_size(f"buckets[{i}]", b) for i, b in enumerate(buckets)))


def auto_buckets(size: Size, step: int = BUCKET_STEP) -> tuple[Size, ...]:
    """Return sizes in multiples of 64 with at most the area of `size`, from aspect ratio 1:2 to 2:1.

    Raises:
        ValueError: the area is below that of 256 x 256.
    """
    area = size[0] * size[1]
    if area < (4 * step) ** 2:
        raise ValueError(
            f'buckets: found "auto" with resolution {list(size)}; accepted: at least {4 * step} x {4 * step} pixels. '
            "Give smaller buckets as a list of [height, width]."
        )
    found = [(h, area // h // step * step) for h in range(step, area // step, step)]
    return tuple((h, w) for h, w in found if w and 0.5 <= h / w <= 2)


def check_divisible(sizes: Sequence[Size], factor: int) -> None:
    """Refuse sizes that the VAE would round.

    Raises:
        ValueError: a side is no multiple of `factor`; the message names the nearest size that is.
    """
    for height, width in sizes:
        if height % factor or width % factor:
            near = [max(factor, round(v / factor) * factor) for v in (height, width)]
            raise ValueError(
                f"resolution: found {height} x {width} pixels (height x width); accepted: multiples of {factor}, the "
                f"factor of this model's VAE. The nearest is {near[0]} x {near[1]}."
            )


def _size(argument: str, value: Sequence[int]) -> Size:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(sides) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in sides):
        raise ValueError(f"{argument}: found {value!r}; accepted: [height, width] in whole pixels >= 1, or one number.")
    return sides[0], sides[1]


def _fill(original: Size, size: Size) -> Size:
    """The smallest size of the same aspect ratio that covers `size`."""
    scale = max(t / o for o, t in zip(original, size, strict=True))
    return max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale))


def _fit(original: Size, size: Size) -> Size:
    """The largest size of the same aspect ratio inside `size`."""
    scale = min(t / o for o, t in zip(original, size, strict=True))
    return min(size[0], max(1, round(original[0] * scale))), min(size[1], max(1, round(original[1] * scale)))


def _cropped(image: Image.Image, frame: Frame) -> Image.Image:
    top, left = frame.offset
    return image.crop((left, top, left + frame.size[1], top + frame.size[0]))


def _padded(image: Image.Image, size: Size) -> Image.Image:
    if image.size == (size[1], size[0]):
        return image
    ground = Image.new("RGB", (size[1], size[0]), GREY)
    ground.paste(image, ((size[1] - image.width) // 2, (size[0] - image.height) // 2))
    return ground
