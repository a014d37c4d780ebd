"""Coloured shapes with captions, and a reader that tells exactly which colour and shape an image shows.

Legend: N images, S pixels per side, P = S*S, C colours, T templates (shape x size x place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge
from pl_prefopt.utilities.configurable import Configurable

COLOURS = {
    "red": (0.86, 0.16, 0.18),
    "green": (0.13, 0.62, 0.25),
    "blue": (0.15, 0.33, 0.85),
    "yellow": (0.95, 0.76, 0.1),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = 0.93
FINE = 6
RADII = (0.24, 0.34)
SHIFT = 0.1
SEEN = 0.5
"""Least clarity at which a shape is read at all."""
CLEAR = 0.8
"""Least clarity of an image that a person would call clean."""


@dataclass(frozen=True)
class Reading:
    """What one image shows.

    Args:
        colour: name of the colour, "" if no shape is seen.
        shape: name of the shape, "" if none is seen.
        clarity: share of the difference from an empty image that the best template explains, in [0, 1].
    """

    colour: str
    shape: str
    clarity: float


class ShapesWorld(Configurable):
    """Images of one coloured shape on a grey ground, e.g. "a red circle"; place and size vary.

    Args:
        size: pixels per side, at least 8.
    """

    def __init__(self, size: int = 32) -> None:
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {size}")
        self.size = size

    @property
    def captions(self) -> list[str]:
        """Every caption: colours x shapes."""
        return [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]

    def draw(self, caption: str, generator: np.random.Generator) -> Tensor:
        """Render (3, S, S) in [0, 1]: the caption's shape at a random place and size."""
        colour, shape = parse(caption)
        radius = generator.uniform(*RADII)
        x, y = 0.5 + generator.uniform(-SHIFT, SHIFT, 2)
        return self.render(colour, shape, x, y, radius)

    def render(self, colour: str, shape: str, x: float, y: float, radius: float) -> Tensor:
        """Render (3, S, S) in [0, 1]; place and radius are shares of the side."""
        mask = torch.from_numpy(coverage(shape, x, y, radius, self.size))
        paint = torch.tensor(COLOURS[colour])[:, None, None]
        return BACKGROUND * (1 - mask) + paint * mask

    def read(self, images: Tensor) -> list[Reading]:
        """Colour, shape and clarity of images (N, 3, S, S) in [0, 1], by the template of least squared error.

        Raises:
            ValueError: another size, or values that are not finite.
        """
        if images.shape[1:] != (3, self.size, self.size) or not bool(torch.isfinite(images).all()):
            raise ValueError(
                f"images must be finite and of shape (N, 3, {self.size}, {self.size}), got {tuple(images.shape)}"
            )
        masks, norms, shapes = _templates(self.size)
        paints = torch.tensor(list(COLOURS.values()), dtype=torch.float64) - BACKGROUND
        change = (images.detach().cpu().double() - BACKGROUND).flatten(2)
        overlap = torch.einsum("ncp,kc->nkp", change, paints) @ masks.T
        saved = 2 * overlap - paints.square().sum(1)[:, None] * norms
        gain, best = saved.flatten(1).max(1)
        clarity = (gain / change.square().sum((1, 2)).clamp(min=1e-12)).clamp(0, 1)
        names, count = list(COLOURS), len(shapes)
        readings = [(names[int(p) // count], shapes[int(p) % count]) for p in best]
        return [Reading(*(s if c >= SEEN else ("", "")), float(c)) for s, c in zip(readings, clarity, strict=True)]


def parse(caption: str) -> tuple[str, str]:
    """("red", "circle") of "a red circle".

    Raises:
        ValueError: the caption names no colour or no shape of this world.
    """
    words = caption.split()
    colour = next((w for w in words if w in COLOURS), None)
    shape = next((w for w in words if w in SHAPES), None)
    if colour is None or shape is None:
        raise ValueError(
            f"caption {caption!r} must name a colour of {', '.join(COLOURS)} and a shape of {', '.join(SHAPES)}"
        )
    return colour, shape


def coverage(shape: str, x: float, y: float, radius: float, size: int) -> np.ndarray:
    """(S, S) float32 share of each pixel that the shape covers; all shapes of one radius have about the same area."""
    positions = (np.arange(size * FINE) + 0.5) / (size * FINE)
    dx, dy = positions[None, :] - x, positions[:, None] - y
    fine = _inside(shape, dx, dy, radius)
    return fine.reshape(size, FINE, size, FINE).mean((1, 3), dtype=np.float32)


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return dx**2 + dy**2 <= radius**2
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) <= 0.89 * radius
    low, high = 0.95 * radius, -1.1 * radius  # of the triangle, measured downwards
    return (dy <= low) & (np.abs(dx) <= 1.25 * radius * (dy - high) / (low - high))


@lru_cache(maxsize=4)
def _templates(size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Masks (T, P), their squared norms (T,) and shape names (T)."""
    offsets = np.linspace(-SHIFT - 0.05, SHIFT + 0.05, 11)
    radii = np.linspace(RADII[0] - 0.04, RADII[1] + 0.04, 9)
    templates = [(s, 0.5 + x, 0.5 + y, r) for s in SHAPES for r in radii for x in offsets for y in offsets]
    masks = torch.stack([torch.from_numpy(coverage(*c, size)).double().flatten() for c in templates])
    return masks, masks.square().sum(1), [c[0] for c in templates]


def agreement(caption: str, reading: Reading) -> float:
    """Share of the caption's two attributes that the image shows, times its clarity, in [0, 1]."""
    colour, shape = parse(caption)
    return ((reading.colour == colour) + (reading.shape == shape)) / 2 * reading.clarity


def accuracy(captions: Sequence[str], readings: Sequence[Reading]) -> dict[str, float]:
    """Shares of images with the caption's colour, shape, and both, in [0, 1]."""
    wanted = [parse(c) for c in captions]
    colour = [r.colour == c for r, (c, _) in zip(readings, wanted, strict=True)]
    shape = [r.shape == s for r, (_, s) in zip(readings, wanted, strict=True)]
    both = [a and b for a, b in zip(colour, shape, strict=True)]
    return {name: float(np.mean(found)) for name, found in (("colour", colour), ("shape", shape), ("both", both))}


class ShapesJudge(Judge):
    """Agreement of an image with its caption in [0, 1]: 0, 1/2 or 1 attributes of 2, times the clarity.

    Args:
        world: the world whose images are judged.
    """

    def __init__(self, world: ShapesWorld = ShapesWorld()) -> None:  # noqa: B008
        self.world = world

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """Scores (B,)."""
        readings = self.world.read(torch.stack(list(samples)))
        return torch.tensor([agreement(c, r) for c, r in zip(conditions, readings, strict=True)])
